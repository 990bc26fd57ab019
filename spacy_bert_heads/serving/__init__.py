"""A pipeline behind HTTP: micro-batches, an API, and a page to try it."""
