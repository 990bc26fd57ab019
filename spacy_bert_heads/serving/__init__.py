"""Serve a pipeline over HTTP: micro-batches, an API, and a demo page."""
