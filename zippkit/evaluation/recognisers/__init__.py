"""Judges of generated speech: recognisers that had no part in the training, and how their words are compared."""
