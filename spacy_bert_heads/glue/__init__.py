"""The tasks of GLUE from their own files, with the official measures and submission files."""
