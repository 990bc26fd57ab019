"""Faults of annotated data from which a head learns nothing, or something wrong."""
