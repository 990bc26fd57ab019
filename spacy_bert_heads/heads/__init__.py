"""What a pipeline learns from the encoder's states."""
