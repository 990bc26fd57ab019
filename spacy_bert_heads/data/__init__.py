"""Convert training data to `.spacy`, and read `.spacy` files as examples and batches."""
