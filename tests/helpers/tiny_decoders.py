"""Tiny language models of transformers with random weights, in folders as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import MistralConfig, MistralForCausalLM


def write_windowed(folder: Path) -> None:
    """A model whose tokens see the four last ones, themselves included; its ids are 0 to 8, 1 begins and 2 ends."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=9, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=4, bos_token_id=1, eos_token_id=2, initializer_range=0.6,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
