"""Pipelines on the same data: how they differ, and how certain that is."""
