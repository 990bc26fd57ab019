"""Shared by the training of encoders and pipelines: processes, locks, signals, training states."""
