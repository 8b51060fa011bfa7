"""Decoders of Hugging Face transformers, run layer by layer."""
