"""Measure and calibrate probabilities."""
