"""`spacy train` on several processes, and after a break."""
