"""A run to scores and proofs."""
