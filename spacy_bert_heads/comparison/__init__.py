"""Compare pipelines on the same data, with confidence intervals and significance tests."""
