"""Heads: the components that read the encoder's hidden states."""
