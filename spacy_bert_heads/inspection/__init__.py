"""Inspect encoders and heads, and write the results as PNG and HTML."""
