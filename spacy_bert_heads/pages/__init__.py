"""Pages of what a pipeline predicts, beside what is right."""
