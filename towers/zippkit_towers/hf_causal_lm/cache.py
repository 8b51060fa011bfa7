"""The KV cache of a decoder of transformers, in the form in which transformers' layers write to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from zippkit.model.kv_cache import KeyValues
from zippkit_towers.hf_causal_lm.settings import size_of


@dataclass
class Slots(KeyValues):
    """Keys and values with transformers' cache interface: layers call ``update``."""

    slots: Tensor | None = None
    """(B, T) slots of the new tokens."""
    n_slots: int = 0
    """How many slots are attended to."""

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens (B, H_kv, T, K) into their slots; return the first ``n_slots`` slots."""
        return self.extend(layer_idx, key, value, cast("Tensor", self.slots), self.n_slots)


def empty_slots(hf: Any, n_layers: int, dim: int, like: Tensor, batch_size: int, max_len: int) -> Slots:
    """An empty cache in the dtype and on the device of ``like``.

    Args:
        hf: transformers' config.
        n_layers: number of layers.
        dim: width of the hidden states.
        like: a tensor of the model.
        batch_size: rows.
        max_len: slots of each row.
    """
    keys, values = (
        [like.new_zeros(batch_size, n_heads, max_len, width) for _ in range(n_layers)]
        for n_heads, width in _shapes(hf, dim)
    )
    return Slots(keys, values)


def _shapes(hf: Any, dim: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(heads, width) of keys, and of values; a layer that has others gets its slots when it first writes."""
    n_heads = size_of(hf, "num_attention_heads") or 1
    if size_of(hf, "kv_lora_rank"):
        # Multi-head latent attention (arXiv 2405.04434).
        key_width = size_of(hf, "qk_nope_head_dim") + size_of(hf, "qk_rope_head_dim")
        return (n_heads, key_width), (n_heads, size_of(hf, "v_head_dim"))
    shape = (size_of(hf, "num_key_value_heads") or n_heads, size_of(hf, "head_dim") or dim // n_heads)
    return shape, shape
