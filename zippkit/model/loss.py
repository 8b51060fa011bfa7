"""The loss: nats per predicted token, of each tower and of all, and what the model's parts add."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from zippkit.batch.batch import IGNORE, Batch
from zippkit.errors import DataError
from zippkit.model.layers import at_least_float32
from zippkit.model.part_group import Loss


def loss(outputs: Mapping[str, Tensor], batch: Batch, added: Mapping[str, Loss] | None = None) -> dict[str, Tensor]:
    """Mean nats per predicted token of each tower, added losses, and ``total``.

    ``total`` is the mean over the tokens of all towers, plus the added losses by their weights. A tower without any
    target in this batch has a loss of 0.

    Args:
        outputs: the model's.
        batch: its input.
        added: losses that are not of tokens (`zippkit.model.zipped_model.ZippedModel.added_losses`).

    Raises:
        DataError: there are no logits at all, because no segment of the batch asks for a loss.
    """
    if not outputs:
        raise DataError("no segment of this batch asks for a loss (`Segment.loss`), so there are no logits to score")
    losses: dict[str, Tensor] = {}
    nats: list[Tensor] = []
    counts: list[Tensor] = []
    for name, values in outputs.items():
        if name in batch.towers:
            flat = at_least_float32(rearrange(values, "b t v -> (b t) v"))
            wanted = rearrange(batch.towers[name].targets, "b t -> (b t)")
            nats.append(F.cross_entropy(flat, wanted, ignore_index=IGNORE, reduction="sum"))
            counts.append((wanted != IGNORE).sum())
            losses[name] = nats[-1] / counts[-1].clamp(min=1)
    total = torch.stack(nats).sum() / torch.stack(counts).sum().clamp(min=1)
    for name, each in (added or {}).items():
        losses[name] = each.value
        total = total + each.weight * each.value
    losses["total"] = total
    return losses
