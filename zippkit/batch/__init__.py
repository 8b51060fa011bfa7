"""Segments to tensors, and who sees whom in them."""
