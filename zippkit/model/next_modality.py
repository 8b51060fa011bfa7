"""A small head at a segment's end that predicts the next modality, or that the row ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.batch.batch import IGNORE, Batch, TowerBatch
from zippkit.model.forward import Forward
from zippkit.model.layers import at_least_float32
from zippkit.model.part_group import Loss, PartGroup
from zippkit.model.tower import Tower
from zippkit.plan.graph import Graph
from zippkit.plan.plan import Op
from zippkit.spec.composition_spec import CompositionSpec

PREFIX = "next."
"""Of the logits of a tower's head: `next.text`."""


class NextHead(nn.Module):
    """Reads a tower's last states; only those at segments' ends mean anything."""

    def __init__(self, dim: int, n_modalities: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.out = nn.Linear(dim, n_modalities + 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) to (B, T, N + 1): the modalities in their order, and last that nothing follows."""
        found: Tensor = self.out(self.norm(hidden))
        return found


def next_nats(logits: Tensor, tokens: TowerBatch) -> tuple[Tensor, Tensor]:
    """Nats over all ends of a tower's segments, and how many ends there are."""
    wanted = rearrange(cast("Tensor", tokens.following), "b t -> (b t)")
    flat = at_least_float32(rearrange(logits, "b t n -> (b t) n"))
    total = F.cross_entropy(flat, wanted, ignore_index=IGNORE, reduction="sum")
    return total, (wanted != IGNORE).sum()


class NextModality(PartGroup):
    """A head on each tower's last states, which gives (B, T, N + 1) logits as ``next.<tower>``."""

    weight: float = 0.0
    """Of the loss: the mean over segments of all towers."""

    @classmethod
    def build(cls, group: str, spec: CompositionSpec, graph: Graph, towers: Mapping[str, Tower]) -> Self:
        """Draw a head for every tower."""
        names, n = spec.towers if spec.next is not None else (), len(graph.modalities)
        heads = cls(group, {name: NextHead(graph.towers[name].dim, n) for name in towers if name in names})
        heads.weight = spec.next.weight if spec.next is not None else 0.0
        return heads

    def answers(self, name: str, batch: Batch) -> bool:
        """Whether the batch says what follows."""
        return batch.towers[name].following is not None

    def around(self, tower: str, owner: str) -> bool:
        """The head is an operation of its own."""
        del tower, owner
        return False

    def run(self, name: str, op: Op, forward: Forward) -> None:
        """Logits (B, T, N + 1) over the N modalities and the end of the row."""
        forward.outputs[PREFIX + name] = self[name](forward.hidden[op.tower])

    def losses(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Loss]:
        """Mean nats per segment's end."""
        ends = [next_nats(outputs[PREFIX + name], batch.towers[name]) for name in self if PREFIX + name in outputs]
        if not ends:
            return {}
        nats, n_ends = (torch.stack(each).sum() for each in zip(*ends, strict=True))
        return {"next": Loss(nats / n_ends.clamp(min=1), self.weight)}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Segments' ends."""
        following = [batch.towers[name].following for name in self if name in batch.towers]
        ends = [(each != IGNORE).sum() for each in following if each is not None]
        return {"next": torch.stack(ends).sum()} if ends and batch.outputs else {}
