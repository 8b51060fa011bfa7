"""Chooses the next token: greedily, or drawn with a temperature from what top-k and top-p leave."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Way(NamedTuple):
    """How tokens of one modality are chosen."""

    temperature: float = 0.0
    """0: the likeliest."""
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    """Of every id that the row has seen (arXiv 1909.05858)."""


def choose(logits: Tensor, way: Way, seen: Tensor, draws: Tensor) -> Tensor:
    """The next token of each row.

    Args:
        logits: (B, V) of one modality's ids.
        way: how to choose.
        seen: (B, V) bool, ids that the row has seen.
        draws: (B,) uniform numbers of [0, 1), each row's own, so that it does not depend on the rows beside it.

    Returns:
        (B,) ids.
    """
    if way.repetition_penalty != 1:
        punished = torch.where(logits > 0, logits / way.repetition_penalty, logits * way.repetition_penalty)
        logits = torch.where(seen, punished, logits)
    if way.temperature == 0:
        return logits.argmax(dim=-1)
    n_kept = min(way.top_k or logits.shape[-1], logits.shape[-1])
    best, ids = (logits.double() / way.temperature).topk(n_kept, dim=-1)
    probabilities = best.softmax(dim=-1)
    up_to = probabilities.cumsum(dim=-1)
    if way.top_p is not None:
        # A token stays if those before it have not reached top_p yet; so the likeliest one always does.
        probabilities = probabilities.where(up_to - probabilities < way.top_p, 0)
        up_to = probabilities.cumsum(dim=-1)
    drawn = (up_to <= draws.double()[:, None] * up_to[:, -1:]).sum(dim=-1)
    last = ((probabilities > 0).sum(dim=-1) - 1).clamp(min=0)
    return ids.gather(-1, torch.minimum(drawn, last)[:, None])[:, 0]
