"""The contrastive loss between two towers: which row's states belong together.

CLIP (arXiv 2103.00020); CoCa (arXiv 2205.01917).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self, cast

import torch
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
from zippkit.spec.part_sections import Contrast

MASKED = -1e9
"""Similarity with a row that lacks one of the two towers."""


class ContrastHead(nn.Module):
    """Compares rows of two towers by the cosine of their projected states."""

    def __init__(self, source: str, dims: tuple[int, int], width: int, weight: float) -> None:
        """Build the two maps.

        Args:
            source: the tower whose states are averaged.
            dims: widths of the two towers' states, the source's first.
            width: in which they are compared.
            weight: of this loss beside that of the tokens.
        """
        super().__init__()
        self.source, self.weight = source, weight
        self.source_map = nn.Linear(dims[0], width, bias=False)
        self.target_map = nn.Linear(dims[1], width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def pool(self, tower: str, hidden: Tensor, tokens: TowerBatch) -> tuple[Tensor, Tensor]:
        """(B, width) of length 1, and (B,) bool: the row has tokens of this tower."""
        real = tokens.order >= 0
        n_tokens = real.sum(dim=1)
        if tower == self.source:
            mean = (hidden * real[:, :, None]).sum(dim=1) / n_tokens.clamp(min=1)[:, None]
            pooled = self.source_map(mean)
        else:
            last = (n_tokens - 1).clamp(min=0)[:, None, None].expand(-1, 1, hidden.shape[-1])
            pooled = self.target_map(hidden.gather(1, last).squeeze(1))
        return F.normalize(pooled, dim=-1), n_tokens > 0

    def compare(self, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
        """(B, B) similarity logits; MASKED where a row lacks one of the two."""
        logits = self.log_scale.exp().clamp(max=100) * one[0] @ other[0].T
        there = one[1] & other[1]
        return torch.where(there[:, None] & there[None, :], logits, MASKED)


def contrast_loss(logits: Tensor) -> Tensor:
    """Mean nats to find the right row, both ways, from (B, B) logits of which the diagonal is right; 0 without rows."""
    there = logits.diagonal() > MASKED / 2
    targets = torch.where(there, torch.arange(len(logits), device=logits.device), IGNORE)
    wide = at_least_float32(logits)
    nats = [F.cross_entropy(each, targets, ignore_index=IGNORE, reduction="sum") for each in (wide, wide.T)]
    return torch.stack(nats).sum() / (2 * there.sum().clamp(min=1))


class ContrastiveLosses(PartGroup):
    """Losses by name; each pools a state of two towers, and gives (B, B) logits under its name."""

    across: Callable[[Tensor], Tensor] = staticmethod(lambda rows: rows)
    """Brings a step's rows (B, ...) together where several processes have some, so that each is compared with all."""

    @classmethod
    def build(cls, group: str, spec: CompositionSpec, graph: Graph, towers: Mapping[str, Tower]) -> Self:
        """Draw the projections of every contrastive loss of the spec."""
        del towers
        return cls(group, {contrast.label: _head(contrast, graph) for contrast in spec.contrastive})

    def of(self, name: str) -> ContrastHead:
        """The head of a loss."""
        return cast("ContrastHead", self[name])

    def run(self, name: str, op: Op, forward: Forward) -> None:
        """Pool and project one side; the second one gives the logits (B, B)."""
        head, pooled = self.of(name), forward.scratch.setdefault(op.part, [])
        pooled.append(head.pool(op.tower, forward.hidden[op.tower], forward.inputs[op.tower]))
        if len(pooled) == 2:
            (one, has_one), (other, has_other) = pooled
            there = self.across((has_one & has_other).to(one.dtype)) > 0
            forward.outputs[name] = head.compare((self.across(one), there), (self.across(other), there))

    def losses(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Loss]:
        """The weighted loss of each pair whose logits are there."""
        del batch
        return {name: Loss(contrast_loss(outputs[name]), self.of(name).weight) for name in self if name in outputs}


def _head(spec: Contrast, graph: Graph) -> ContrastHead:
    dims = (graph.towers[spec.source].dim, graph.towers[spec.target].dim)
    return ContrastHead(spec.source, dims, spec.width, spec.weight)
