"""The public face of a compiled spec: one object that collates, masks, scores, describes and saves itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zippkit import loss as _loss
from zippkit.batch import Batch, Segment, collate
from zippkit.compiler import build_model
from zippkit.graph import Graph
from zippkit.model import ZippedModel
from zippkit.plan import Plan
from zippkit.spec import CompositionSpec


@dataclass(frozen=True)
class Composition:
    """A compiled spec."""

    spec: CompositionSpec
    graph: Graph
    model: ZippedModel

    @property
    def plan(self) -> Plan:
        """Every operation in order, before a batch prunes it."""
        return self.model.plan

    def collate(self, examples: Sequence[Sequence[Segment]], multiple: int = 1, ids: Sequence[str] = ()) -> Batch:
        """Examples, each a list of segments in linear order, to one padded batch (see `zippkit.batch.collate`)."""
        return collate(examples, self.graph.towers, multiple, ids)

    def loss(self, logits: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Nats per predicted token, of each tower and ``total`` (see `zippkit.loss.loss`)."""
        return _loss.loss(logits, batch)


def compile(spec: CompositionSpec, *, seed: int = 0, load_weights: bool = True) -> Composition:
    """Build the model of a spec; new parameters depend on ``seed`` alone.

    Raises:
        SpecError: everything that is wrong with the spec.
        CheckpointError: weights that do not fit.
    """
    model, graph = build_model(spec, seed=seed, load_weights=load_weights)
    return Composition(spec, graph, model)
