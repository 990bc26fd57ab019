"""Annotate corpora of any size, by any number of processes and machines."""
