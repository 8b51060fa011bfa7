"""Who sees whom in an interleaved sequence: one comparison of orders, as tables of bools.

A worked example, text "ab", then speech 7 8, then text "c" (design, section 4)::

    order of text tokens    <b>0 a1 b2 <e>3 <b>8 c9 <e>10
    order of speech tokens  <b>4 7:5 8:6 <e>7

The text token c (order 9) sees the speech tokens 4 to 7; the text token a (order 1) sees none of them.
True always means "may attend". The same, as a few integers for each segment, is in `zippkit.batch.describe`; attention
takes whatever rendering suits (`zippkit.model.visibility`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch


def cross_mask(query_order: Tensor, key_order: Tensor, query_start: Tensor | None = None) -> Tensor:
    """Which source tokens each target token sees: those of its own document that come strictly before it.

    Args:
        query_order: (B, T) order of the target's tokens; -1 marks padding, which sees nothing.
        key_order: (B, S) order from which a source token is visible; -1 marks padding, which nobody sees.
        query_start: (B, T) order of the first token of each target token's document; None where every row is one
            document (`zippkit.batch.batch.TowerBatch.document_start`).

    Returns:
        (B, T, S) bool.
    """
    keys = key_order[:, None, :]
    first = 0 if query_start is None else query_start[:, :, None]
    return (keys >= first) & (keys < query_order[:, :, None])


def self_mask(batch: TowerBatch, causal: bool) -> Tensor | None:
    """(B, T, T) mask of a tower's own tokens, or None where plain causal attention says the same.

    Padding stands after a row's tokens, so a causal tower needs no mask, unless documents share a row; one that is not
    causal sees its segment.
    """
    if not causal:
        return batch.segment[:, :, None] == batch.segment[:, None, :]
    return (batch.start[:, :, None] == batch.start[:, None, :]).tril() if batch.packed else None


def cache_mask(positions: Tensor, length: int) -> Tensor:
    """(B, T, length) mask of a tower's cache, where slot ``i`` holds the token at position ``i``."""
    return torch.arange(length, device=positions.device) <= positions[:, :, None]
