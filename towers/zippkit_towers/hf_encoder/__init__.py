"""Encoders of Hugging Face transformers, as sources."""
