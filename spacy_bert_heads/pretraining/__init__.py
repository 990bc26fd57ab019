"""Raw text to a better encoder."""
