"""BERT inside spaCy: one shared encoder, many heads."""

__version__ = "0.1.0"
