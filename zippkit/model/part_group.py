"""All parts of one kind in a model.

A group says what its parts are built from, what they do around a tower, their operations and their loss.
`zippkit.spec.part_kinds` says the same without torch. A package of somebody else adds a kind by one subclass, named in
the entry points `zippkit.parts`: its ``Config`` is what stands under ``towers.<name>.parts.<kind>``, and `part` builds
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from zippkit.batch.batch import Batch, TowerBatch
from zippkit.model.forward import Forward
from zippkit.model.tower import Tower
from zippkit.plan.graph import Graph
from zippkit.plan.plan import Op
from zippkit.spec.composition_spec import CompositionSpec


class Loss(NamedTuple):
    """A loss that is not of tokens."""

    value: Tensor
    """() nats."""
    weight: float
    """Beside the loss of the tokens."""


class PartGroup(nn.ModuleDict):
    """Parts by the name of the tower, link or loss to which each belongs.

    Their parameters are called ``<group>.<name>.…``.
    """

    def __init__(self, group: str, parts: Mapping[str, nn.Module]) -> None:
        super().__init__(parts)
        self.group = group

    @classmethod
    def build(cls, group: str, spec: CompositionSpec, graph: Graph, towers: Mapping[str, Tower]) -> Self:
        """The parts that a spec asks for, which may be none.

        Raises:
            SpecError: what only a built tower tells to be wrong.
        """
        raise NotImplementedError

    def around(self, tower: str, owner: str) -> bool:
        """Whether a part here acts inside the operations of a tower, whose weights stand under the name ``owner``."""
        del owner
        return tower in self

    # Around a tower: its tokens come in through `known`, its states leave through `embedded`, its logits through
    # `logits`.

    def known(self, name: str, inputs: TowerBatch) -> TowerBatch:
        """The tower's new tokens as it is to be given them."""
        del name
        return inputs

    def embedded(
        self, name: str, tower: Tower, inputs: TowerBatch, hidden: Tensor, multimodal: Tensor | bool
    ) -> Tensor:
        """The state at depth 0 (B, T, D), made from what the tower's embedding gave."""
        del name, tower, inputs, multimodal
        return hidden

    def logits(self, name: str, logits: Tensor, hidden: Tensor, multimodal: Tensor | bool) -> Tensor:
        """Logits (B, T, V), made from the tower's own and its last states (B, T, D)."""
        del name, hidden, multimodal
        return logits

    def trains(self, op: Op) -> bool:
        """Whether an operation of a tower that has a part here uses trained parameters of that part."""
        return op.kind in ("start", "head") and _trainable(self[op.tower])

    # Operations and losses of their own.

    def answers(self, name: str, batch: Batch) -> bool:
        """Whether a part's own operations can run on a batch in which all its towers are."""
        del name, batch
        return True

    def run(self, name: str, op: Op, forward: Forward) -> None:
        """Run an operation of a part's own; what it puts into ``forward.outputs`` the model gives."""
        raise NotImplementedError(f"{type(self).__name__} has no operation {op.kind!r}")

    def losses(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Loss]:
        """Losses by name, from what the model gave."""
        del outputs, batch
        return {}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """How many things each of these losses is a mean over, () each, by which batches of one step are weighed.

        All batches of a step count the same for a loss that is left out.
        """
        del batch
        return {}


class TowerParts(PartGroup):
    """Base of kinds that other packages bring: one part for each tower whose section ``parts`` names the kind."""

    Config: ClassVar[type[Any]]

    @classmethod
    def part(cls, config: Any, tower: Tower) -> nn.Module:
        """The part of one tower, from its checked settings."""
        raise NotImplementedError

    @classmethod
    def build(cls, group: str, spec: CompositionSpec, graph: Graph, towers: Mapping[str, Tower]) -> Self:
        """Build the part of every tower whose section ``parts`` names the kind."""
        del graph
        given = {name: tower.parts[group] for name, tower in spec.towers.items() if group in tower.parts}
        configs = {name: cls.Config.model_validate(settings) for name, settings in given.items()}
        return cls(group, {name: cls.part(config, towers[name]) for name, config in configs.items()})


def where_multimodal(new: Tensor, old: Tensor, multimodal: Tensor | bool) -> Tensor:
    """``new`` (B, T, N) in rows that are declared multimodal, ``old`` in the others, to the bit."""
    if isinstance(multimodal, bool):
        return new if multimodal else old
    return torch.where(multimodal[:, None, None], new, old)


def _trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
