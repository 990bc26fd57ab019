"""Checks for faults of annotated data that training would ignore or learn wrongly."""
