"""How good probabilities are, and what makes them better."""
