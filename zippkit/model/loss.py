"""The loss: nats per predicted token, of each tower and of all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from zippkit.batch.batch import IGNORE, Batch
from zippkit.errors import DataError
from zippkit.model.contrastive import contrast_loss
from zippkit.model.layers import at_least_float32
from zippkit.model.next_modality import PREFIX, next_nats
from zippkit.model.tower import ROUTER


def loss(logits: Mapping[str, Tensor], batch: Batch, weights: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """Mean nats per predicted token of each tower, and ``total``: the mean over the tokens of all towers, and what
    contrastive losses add, and ``next``: the mean over segments of what comes after them; and ``router.<tower>``: how
    unevenly a trained mixture of experts dealt its tokens out, which counts with its model's own weight.

    A tower without any target in this batch has a loss of 0.

    Args:
        logits: what the model gave.
        batch: what it was given.
        weights: of the losses that are not of tokens, by name.

    Raises:
        DataError: there are no logits at all, because no segment of the batch asks for a loss.
    """
    if not logits:
        raise DataError("no segment of this batch asks for a loss (`Segment.loss`), so there are no logits to score")
    losses: dict[str, Tensor] = {}
    nats: list[Tensor] = []
    counts: list[Tensor] = []
    ends: list[tuple[Tensor, Tensor]] = []
    weights = weights or {}
    for name, values in logits.items():
        if name.startswith(ROUTER):
            losses[name] = values
            continue
        if name in weights:
            losses[name] = contrast_loss(values)
            continue
        if name.startswith(PREFIX):
            ends.append(next_nats(values, batch.towers[name.removeprefix(PREFIX)]))
            continue
        targets = batch.towers[name].targets
        flat, wanted = at_least_float32(values.flatten(0, 1)), targets.flatten()
        total = F.cross_entropy(flat, wanted, ignore_index=IGNORE, reduction="sum")
        count = (wanted != IGNORE).sum()
        losses[name] = total / count.clamp(min=1)
        nats.append(total)
        counts.append(count)
    total = torch.stack(nats).sum() / torch.stack(counts).sum().clamp(min=1)
    if ends:
        told, n_told = (torch.stack(each).sum() for each in zip(*ends, strict=True))
        losses["next"] = told / n_told.clamp(min=1)
    for name, weight in weights.items():
        if name in losses:
            total = total + weight * losses[name]
    losses["total"] = total
    return losses
