"""A whole composition as a folder that transformers loads without zippkit."""
