"""Segments in, segments out, in any order of modalities."""
