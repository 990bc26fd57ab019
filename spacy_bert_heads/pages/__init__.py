"""Write predictions and gold annotations as HTML pages."""
