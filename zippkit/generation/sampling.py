"""Choose the next token: greedily, or drawn with a temperature from what top-k and top-p leave."""

from __future__ import annotations

import torch
from torch import Tensor

from zippkit.spec.sampling import Sampling

GREEDY = Sampling()


def penalised(logits: Tensor, seen: Tensor | None, penalty: float) -> Tensor:
    """Logits (B, V) with a repetition penalty on tokens that were ``seen``, (B, V) bool (arXiv 1909.05858)."""
    if seen is None or penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def choose(logits: Tensor, sampling: Sampling, seen: Tensor | None, draws: Tensor | None) -> Tensor:
    """The next token of each row.

    Args:
        logits: (B, V) of one modality's ids.
        sampling: how to choose.
        seen: (B, V) bool, tokens that the row has seen; needed for a repetition penalty only.
        draws: (B,) uniform numbers of [0, 1), each row's own; needed with a temperature only. A row's choice is a
            function of its logits and its number, so that it does not depend on the rows beside it.

    Returns:
        (B,) ids.
    """
    logits = penalised(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    assert draws is not None, "a drawn token needs a number"
    n_kept = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    best, ids = (logits.double() / sampling.temperature).topk(n_kept, dim=-1)
    probabilities = best.softmax(dim=-1)
    up_to = probabilities.cumsum(dim=-1)
    if sampling.top_p is not None:
        # A token stays if those before it have not reached top_p yet; so the likeliest one always does.
        probabilities = probabilities.where(up_to - probabilities < sampling.top_p, 0)
        up_to = probabilities.cumsum(dim=-1)
    drawn = (up_to <= draws.double()[:, None] * up_to[:, -1:]).sum(dim=-1)
    # A number close to 1 may fall behind the last token by a rounding.
    last = ((probabilities > 0).sum(dim=-1) - 1).clamp(min=0)
    return ids.gather(-1, torch.minimum(drawn, last)[:, None])[:, 0]
