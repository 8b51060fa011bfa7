"""The loss: nats per predicted token, of each tower and of all, and what the model's parts add."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from zippkit.batch.batch import IGNORE, Batch
from zippkit.errors import DataError
from zippkit.model.economy import NATS
from zippkit.model.layers import at_least_float32
from zippkit.model.part_group import Loss


@dataclass(frozen=True)
class Counts:
    """How many things each loss is a mean over, in one batch or in all batches of a step."""

    tokens: Mapping[str, Tensor]
    """() predicted tokens, by tower."""
    others: Mapping[str, Tensor]
    """() of losses that are not of tokens; what is left out counts a batch as one thing."""
    n_batches: int = 1

    @classmethod
    def sum(cls, parts: Iterable[Counts]) -> Counts:
        """The counts of several batches."""
        tokens: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        n_batches = 0
        for part in parts:
            n_batches += part.n_batches
            for found, more in ((tokens, part.tokens), (others, part.others)):
                found |= {name: found[name] + count if name in found else count for name, count in more.items()}
        return cls(tokens, others, n_batches)


@dataclass(frozen=True)
class Share:
    """What a batch is of a step that has several."""

    batch: Counts
    step: Counts

    def of(self, name: str) -> Tensor | float:
        """Part of an added loss that this batch contributes."""
        if name in self.batch.others:
            return self.batch.others[name] / self.step.others[name].clamp(min=1)
        return self.batch.n_batches / self.step.n_batches


def n_targets(batch: Batch, tower: str) -> Tensor:
    """() tokens of a tower that are to be predicted."""
    return (batch.towers[tower].targets != IGNORE).sum()


def loss(
    outputs: Mapping[str, Tensor],
    batch: Batch,
    added: Mapping[str, Loss] | None = None,
    share: Share | None = None,
) -> dict[str, Tensor]:
    """Mean nats per predicted token of each tower, added losses, and ``total``.

    ``total`` is the mean over the tokens of all towers, plus the added losses by their weights. A tower without any
    target in this batch has a loss of 0.

    Args:
        outputs: the model's.
        batch: its input.
        added: losses that are not of tokens (`zippkit.model.zipped_model.ZippedModel.added_losses`).
        share: where the batch is one of several of a step: means are over the whole step, so that those of its
            batches add up to the step's.

    Raises:
        DataError: there are no logits at all, because no segment of the batch asks for a loss.
    """
    if not outputs:
        raise DataError("no segment of this batch asks for a loss (`Segment.loss`), so there are no logits to score")
    losses: dict[str, Tensor] = {}
    nats: list[Tensor] = []
    counts: list[Tensor] = []
    for name, values in outputs.items():
        tower = name.removeprefix(NATS)
        if tower in batch.towers:
            nats.append(values if name != tower else _nats(values, batch.towers[tower].targets))
            counts.append(n_targets(batch, tower) if share is None else share.step.tokens[tower])
            losses[tower] = nats[-1] / counts[-1].clamp(min=1)
    counts = counts if share is None else [*share.step.tokens.values()]
    total = torch.stack(nats).sum() / torch.stack(counts).sum().clamp(min=1)
    for name, each in (added or {}).items():
        losses[name] = each.value if share is None else each.value * share.of(name)
        total = total + each.weight * losses[name]
    losses["total"] = total
    return losses


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """() sum over the targets."""
    flat, wanted = at_least_float32(rearrange(logits, "b t v -> (b t) v")), rearrange(targets, "b t -> (b t)")
    return F.cross_entropy(flat, wanted, ignore_index=IGNORE, reduction="sum")
