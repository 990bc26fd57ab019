"""One BERT for a whole pipeline."""
