"""What an encoder has learned: the views (`word`, `weights`, `map`), and files of them."""
