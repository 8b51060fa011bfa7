"""Input projections: the MLP right after a tower's embedding (Zipper, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.model.layers import ResidualMLP, at_least_float32, mlp
from zippkit.model.part_group import PartGroup, where_multimodal
from zippkit.model.tower import Tower
from zippkit.plan.graph import Graph
from zippkit.plan.plan import Op
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.part_sections import InputProjection


class InputProjections(PartGroup):
    """``h^0 = P(E(x))`` in rows that are declared multimodal; the others pass it by, to the bit."""

    @classmethod
    def build(cls, group: str, spec: CompositionSpec, graph: Graph, towers: Mapping[str, Tower]) -> Self:
        """Draw the input projection of every tower that has one."""
        del towers
        wanted = {name: tower.input_projection for name, tower in spec.towers.items()}
        return cls(group, {name: _projection(each, graph.towers[name].dim) for name, each in wanted.items() if each})

    def embedded(
        self, name: str, tower: Tower, inputs: TowerBatch, hidden: Tensor, multimodal: Tensor | bool
    ) -> Tensor:
        """Pass the embeddings of multimodal rows through the projection."""
        del tower, inputs
        if multimodal is False:
            return hidden
        # Under autocast its last map gives bfloat16, and without a residual all later layers would add to that.
        return where_multimodal(at_least_float32(self[name](hidden)), hidden, multimodal)

    def trains(self, op: Op) -> bool:
        """Only the start of a tower uses its input projection."""
        return op.kind == "start" and super().trains(op)


def _projection(spec: InputProjection, dim: int) -> nn.Module:
    widths = (dim, *[spec.width or dim] * (spec.depth - 1), dim)
    return ResidualMLP(widths, spec.activation) if spec.residual else mlp(widths, spec.activation, activate_last=True)
