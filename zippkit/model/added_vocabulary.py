"""Token ids that a tower is given besides its own: rows of their own in embedding and head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Self, cast

import torch
from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.model.linear import linear
from zippkit.model.part_group import PartGroup
from zippkit.model.tower import Tower
from zippkit.plan.graph import Graph
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.tower_spec import TowerSpec


class AddedVocabulary(nn.Module):
    """Token ids ``first`` and up, embedded in rows of their own.

    The tower's own rows stay as they are, so they may be frozen. The new rows are tied between embedding and head, and
    the head has a norm of its own before them, because a tower's last norm is part of its head.
    """

    def __init__(self, first: int, size: int, dim: int) -> None:
        super().__init__()
        self.first = first
        self.embedding = nn.Embedding(size, dim)
        self.norm = nn.RMSNorm(dim)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def start(self, tower: Tower, inputs: TowerBatch, hidden: Tensor) -> Tensor:
        """Replace the state at depth 0 (B, T, D) at the new ids by their own rows.

        ``hidden`` is the tower's embedding of `known`.
        """
        added = inputs.tokens >= self.first
        embedded = self.embedding((inputs.tokens - self.first).clamp(min=0))
        return torch.where(added[:, :, None], tower.placed(embedded, inputs), hidden)

    def known(self, inputs: TowerBatch) -> TowerBatch:
        """Replace the new ids by one that the tower itself has."""
        return replace(inputs, tokens=torch.where(inputs.tokens < self.first, inputs.tokens, 0))

    def head(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """Append the logits of the new ids to the tower's own: (B, T, V + added)."""
        return torch.cat([logits, linear(self.norm(hidden), self.embedding.weight)], dim=-1)


class Vocabularies(PartGroup):
    """Added ids of each tower that hosts a modality besides its own."""

    @classmethod
    def build(cls, group: str, spec: CompositionSpec, graph: Graph, towers: Mapping[str, Tower]) -> Self:
        """Draw the added rows of every tower that hosts a modality."""
        del graph, towers
        return cls(group, {name: _added(tower) for name, tower in spec.towers.items() if tower.extend_vocabulary})

    def of(self, name: str) -> AddedVocabulary:
        """The ids that were added to a tower."""
        return cast("AddedVocabulary", self[name])

    def known(self, name: str, inputs: TowerBatch) -> TowerBatch:
        """Replace the new ids by one that the tower itself has."""
        return self.of(name).known(inputs)

    def embedded(
        self, name: str, tower: Tower, inputs: TowerBatch, hidden: Tensor, multimodal: Tensor | bool
    ) -> Tensor:
        """Embed the new ids."""
        del multimodal
        return self.of(name).start(tower, inputs, hidden)

    def logits(self, name: str, logits: Tensor, hidden: Tensor, multimodal: Tensor | bool) -> Tensor:
        """Append the logits of the new ids."""
        del multimodal
        return self.of(name).head(logits, hidden)


def _added(spec: TowerSpec) -> AddedVocabulary:
    config = spec.settings
    return AddedVocabulary(config.vocab_size or 0, sum(v.size for v in spec.extend_vocabulary.values()), config.dim)
