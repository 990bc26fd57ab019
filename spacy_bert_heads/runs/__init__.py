"""What trainings of encoders and of pipelines have in common: processes, locks, signals, training
states."""
