"""What each of several ranks holds and sends: parameters by the units that are brought together, before any time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import nn

from zippkit.errors import ZippkitError
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.parts import part_of
from zippkit.plan.plan import Op, Plan

Shard = Literal["none", "trained", "all"]
Place = Literal["replicate", "per_layer", "root"]
ROOT = "root"
GRADIENT = 4
"""Bytes of a number of a gradient as ranks add them up."""
_NUMBERED = re.compile(r"(?:towers|links)\.[^.]+\.(?:.*?\.)??(\d+)\.")
"""Names of parameters of a tower's layer or of a link's site, and its number."""


@dataclass(frozen=True)
class Division:
    """How a run is divided among ranks, in the words of a recipe's ``parallel``."""

    ranks: int
    shard: Shard = "trained"
    frozen: Place | None = None
    replicas: int = 1
    units: Literal["layers", "root"] = "layers"
    """What is brought together at once: each tower's layer and each link's site, or everything."""

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            ZippkitError: what contradicts itself.
        """
        if self.ranks < 1 or self.replicas < 1 or self.ranks % self.replicas:
            raise ZippkitError(f"{self.replicas} replicas do not divide {self.ranks} ranks; expected a divisor")
        if self.frozen is not None and (self.frozen == "replicate") == (self.shard == "all"):
            told = "replicate" if self.shard != "all" else "per_layer or root"
            raise ZippkitError(f"shard {self.shard} goes with frozen {told}, got {self.frozen}")
        if self.replicas > 1 and self.shard == "none":
            raise ZippkitError("shard none makes every rank a replica; leave replicas out")

    @property
    def group(self) -> int:
        """Ranks that hold one copy together."""
        return self.ranks // self.replicas

    @property
    def frozen_place(self) -> Place:
        """Where frozen weights are."""
        return self.frozen or ("per_layer" if self.shard == "all" else "replicate")


class Use(NamedTuple):
    """How a unit takes part in a step."""

    calls: int
    """How often its weights are used, one after the other: a link's site writes, and reads."""
    backward: bool
    """Whether a gradient passes through it."""
    reached: Set[nn.Parameter]
    """Trained parameters that get a gradient, those of the root's own among them whether they do or not."""


@dataclass
class Unit:
    """Parameters that are brought together at once: a tower's layer, a link's site, or all that is neither."""

    name: str
    trained: dict[str, nn.Parameter] = field(default_factory=dict)
    """By name."""
    frozen: dict[str, nn.Parameter] = field(default_factory=dict)


def units_of(model: ZippedModel, division: Division) -> list[Unit]:
    """The units of a model; the root last, which holds embeddings, heads, norms and what sites share."""
    found: dict[str, Unit] = {}
    for name, parameter in model.named_parameters():
        layer = _NUMBERED.match(name) if division.units == "layers" else None
        rests = not parameter.requires_grad and division.frozen_place == "root"
        place = ROOT if layer is None or rests else name[: layer.end() - 1]
        unit = found.setdefault(place, Unit(place))
        (unit.trained if parameter.requires_grad else unit.frozen)[name] = parameter
    return sorted(found.values(), key=lambda unit: unit.name == ROOT)


def local_numel(parameter: nn.Parameter, group: int) -> int:
    """Numbers that the rank with the largest part of a parameter holds: FSDP2 splits its first dimension evenly."""
    if group == 1 or not parameter.dim():
        return parameter.numel()
    rows = parameter.shape[0]
    return -(-rows // group) * (parameter.numel() // max(rows, 1))


def uses(model: ZippedModel, plan: Plan, units: list[Unit]) -> Mapping[str, Use]:
    """What a pruned plan does with each unit."""
    calls = _calls(model, plan)
    found: dict[str, Use] = {}
    for unit in units:
        at = {p: _NUMBERED.match(name) for name, p in unit.trained.items()}
        reached = {p for p, layer in at.items() if layer is None or calls.get(_numbered(layer), _NONE).backward}
        used = calls.get(_numbered(_NUMBERED.match(f"{unit.name}.")), _NONE) if unit.name != ROOT else _Calls(1, True)
        found[unit.name] = Use(used.n, used.backward, reached)
    return found


class _Calls(NamedTuple):
    n: int
    backward: bool


_NONE = _Calls(0, False)


def _calls(model: ZippedModel, plan: Plan) -> dict[tuple[str, int], _Calls]:
    """How often each layer and each link's site runs, and whether a gradient passes through it."""
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}

    def trains(op: Op) -> bool:
        if op.site is not None:
            return f"links.{op.site.link}" in trained
        around = (part for part in trained if not part.startswith(("links.", "contrastive.", "next.")))
        return op.part is not None or any(part.partition(".")[2] == op.tower for part in around)

    resting = plan.gradient_free(trains)
    found: dict[tuple[str, int], _Calls] = {}
    for op in plan.ops:
        if op.site is not None or op.kind == "layer":
            place = (f"links.{op.site.link}", op.site.index) if op.site else (f"towers.{op.tower}", op.depth - 1)
            before = found.get(place, _NONE)
            found[place] = _Calls(before.n + 1, before.backward or op not in resting)
    return found


def _numbered(layer: re.Match[str] | None) -> tuple[str, int]:
    """The tower or link, and the number, of a layer or site."""
    assert layer is not None, "a unit that is not the root is called by its number"
    return part_of(layer.string), int(layer[1])


def local_bytes(parameter: nn.Parameter, group: int) -> int:
    """Bytes of the largest part of a parameter."""
    return local_numel(parameter, group) * parameter.element_size()


class Held(NamedTuple):
    """Bytes on the rank that holds most."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    """Whole weights while they are used: the root's, and two units', of which one is fetched while the other runs."""


class Message(NamedTuple):
    """A collective operation that every rank takes part in."""

    kind: Literal["all_gather", "reduce_scatter", "all_reduce"]
    bytes: int
    """Of the whole: what every rank has afterwards, or had before."""
    over: int
    """Ranks among which it goes."""
    unit: str

    @property
    def sent(self) -> float:
        """Bytes that each rank sends, and receives, around a ring."""
        times = 2 if self.kind == "all_reduce" else 1
        return times * self.bytes * (self.over - 1) / self.over


def held(units: list[Unit], division: Division, wide: int, moments: int) -> Held:
    """What a rank holds.

    Args:
        units: of the model.
        division: among the ranks.
        wide: bytes of a number as it is brought together.
        moments: numbers that the optimiser keeps for each trained one.
    """
    trained_group = 1 if division.shard == "none" else division.group
    frozen_group = division.group if division.shard == "all" else 1
    trained = sum(local_bytes(p, trained_group) for unit in units for p in unit.trained.values())
    frozen = sum(local_bytes(p, frozen_group) for unit in units for p in unit.frozen.values())
    whole = {unit.name: _gathered(unit, division, wide) for unit in units}
    root = whole.pop(ROOT, 0)
    two = sum(sorted(whole.values())[-2:])
    return Held(trained + frozen, trained, moments * trained, root + two if division.group > 1 else 0)


def _gathered(unit: Unit, division: Division, wide: int) -> int:
    """Bytes of what of a unit is in parts, brought together with what fills up the last parts."""
    group = division.group
    # FSDP2 leaves numbers without dimensions, such as gates, alone.
    trained = [] if division.shard == "none" else [p for p in unit.trained.values() if p.dim()]
    frozen = [p for p in unit.frozen.values() if p.dim()] if division.shard == "all" else []
    return group * (sum(local_numel(p, group) * wide for p in trained) + sum(local_bytes(p, group) for p in frozen))


def messages(
    units: list[Unit], use: Mapping[str, Use], division: Division, wide: int, n_parts: int = 1
) -> Iterator[Message]:
    """The collectives of one step that move weights or gradients.

    Args:
        units: of the model.
        use: what the step does with each.
        division: among the ranks.
        wide: bytes of a number of trained weights as they are brought together.
        n_parts: batches that the step is made of, one after the other.
    """
    if division.ranks == 1:
        return
    if division.shard == "none":
        gradients = sum(p.numel() * GRADIENT for unit in units for p in unit.trained.values())
        if gradients:
            yield Message("all_reduce", gradients, division.ranks, "all")
        return
    for unit in units:
        for _ in range(n_parts):
            yield from _of_unit(unit, use[unit.name], division, wide)


def _of_unit(unit: Unit, use: Use, division: Division, wide: int) -> Iterator[Message]:
    """What one batch moves: weights for each call and again for its gradient, which leaves in parts."""
    size, group = _gathered(unit, division, wide), division.group
    if not size or not use.calls:
        return
    # The root's weights stay until the end of the backward pass.
    again = use.calls if use.backward and unit.name != ROOT else 0
    for _ in range(use.calls + again if group > 1 else 0):
        yield Message("all_gather", size, group, unit.name)
    part = sum(local_numel(p, group) for p in unit.trained.values() if p.dim() and p in use.reached) * GRADIENT
    if not part:
        return
    for call in range(use.calls):
        # A call has gradients of its own parameters alone; together they are all.
        share = part // use.calls + (part % use.calls if call == 0 else 0)
        if group > 1:
            yield Message("reduce_scatter", share * group, group, unit.name)
        if division.replicas > 1:
            yield Message("all_reduce", share, division.replicas, unit.name)
