"""Docs to packed token ids: wordpieces, windows, pairs of texts."""
