"""Training data: files of many formats to `.spacy`, and `.spacy` to examples and batches."""
