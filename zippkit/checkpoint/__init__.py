"""Checkpoints, the towers that they name instead of holding them, and hashes of what is frozen."""
