"""The kinds of parts that a spec can ask for, each with its name in the model and what it is made of; no torch.

The torch half of a kind is its `zippkit.model.part_group.PartGroup`, in the file of `zippkit.model` that is called like
it; both know the kind by its ``group``, under which its parameters, its learning rates and its place in checkpoints
stand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from zippkit.spec import registry
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.link_spec import LinkSpec
from zippkit.spec.tower_spec import TowerSpec


class Operation(NamedTuple):
    """An operation of a part on a tower's state, in the plan's words."""

    kind: str
    part: str
    """``group.name``"""
    tower: str
    depth: int | None
    """After how many layers, before any link rewrites the state; None: at the end, after everything."""


class PartKind(ABC):
    """One kind of part. A part is called ``group.name``, and so begin its parameters' names."""

    group: str

    @abstractmethod
    def names(self, spec: CompositionSpec) -> list[str]:
        """The second half of the names of those parts that a spec asks for."""

    @abstractmethod
    def made_of(self, spec: CompositionSpec, name: str) -> dict[str, Any]:
        """All that decides a part's tensors and what they mean: two parts are the same if this is equal."""

    def frozen(self, spec: CompositionSpec, name: str) -> bool:
        """Whether the spec freezes a part."""
        del spec, name
        return False

    def operations(self, spec: CompositionSpec) -> Iterable[Operation]:
        """The operations that these parts add to the plan; most act inside the operations of their tower."""
        del spec
        return ()


class InputProjections(PartKind):
    """The section ``towers.<name>.input_projection``."""

    group = "input_projections"

    def names(self, spec: CompositionSpec) -> list[str]:
        return [name for name, tower in spec.towers.items() if tower.input_projection is not None]

    def made_of(self, spec: CompositionSpec, name: str) -> dict[str, Any]:
        tower = spec.towers[name]
        projection = tower.model_dump(mode="json")["input_projection"]
        return {"dim": tower.settings.dim, **{key: value for key, value in projection.items() if key != "freeze"}}

    def frozen(self, spec: CompositionSpec, name: str) -> bool:
        projection = spec.towers[name].input_projection
        return projection is not None and projection.freeze


class Adapters(PartKind):
    """The section ``towers.<name>.lora`` and rules of ``freeze``; one set for each set of weights."""

    group = "adapters"

    def names(self, spec: CompositionSpec) -> list[str]:
        return [name for name, tower in spec.towers.items() if tower.share_with is None and tower.adapts]

    def made_of(self, spec: CompositionSpec, name: str) -> dict[str, Any]:
        tower = spec.towers[name]
        rules = {} if isinstance(tower.freeze, bool) else tower.freeze
        adapted = sorted(pattern for pattern, action in rules.items() if action == "lora")
        return {"lora": tower.model_dump(mode="json")["lora"], "rules": adapted}


class Vocabularies(PartKind):
    """The section ``towers.<name>.extend_vocabulary``."""

    group = "vocabularies"

    def names(self, spec: CompositionSpec) -> list[str]:
        return [name for name, tower in spec.towers.items() if tower.extend_vocabulary]

    def made_of(self, spec: CompositionSpec, name: str) -> dict[str, Any]:
        return {"extend_vocabulary": spec.towers[name].model_dump(mode="json")["extend_vocabulary"]}


class Links(PartKind):
    """The section ``links``."""

    group = "links"

    def names(self, spec: CompositionSpec) -> list[str]:
        return [link.label for link in spec.links]

    def made_of(self, spec: CompositionSpec, name: str) -> dict[str, Any]:
        """Without the sites, which the graph knows: a link is the same however its spec writes them down."""
        link = link_called(spec, name)
        return {
            "kind": link.kind,
            "from": link.source,
            "into": link.target,
            "clock": link.clock,
            "projection": link.projection.model_dump(),
            "config": link.settings.model_dump(mode="json", exclude={"dropout"}),
        }

    def frozen(self, spec: CompositionSpec, name: str) -> bool:
        return link_called(spec, name).freeze


class ContrastiveLosses(PartKind):
    """The section ``contrastive``."""

    group = "contrastive"

    def names(self, spec: CompositionSpec) -> list[str]:
        return [contrast.label for contrast in spec.contrastive]

    def made_of(self, spec: CompositionSpec, name: str) -> dict[str, Any]:
        return next(c for c in spec.contrastive if c.label == name).model_dump(by_alias=True)

    def operations(self, spec: CompositionSpec) -> Iterator[Operation]:
        for contrast in spec.contrastive:
            ends = ((contrast.source, contrast.source_depth), (contrast.target, contrast.target_depth))
            for tower, depth in ends:
                last = spec.towers[tower].settings.n_layers
                yield Operation("pool", f"contrastive.{contrast.label}", tower, last if depth is None else depth)


class NextModality(PartKind):
    """The section ``next``."""

    group = "next"

    def names(self, spec: CompositionSpec) -> list[str]:
        return list(spec.towers) if spec.next is not None else []

    def made_of(self, spec: CompositionSpec, name: str) -> dict[str, Any]:
        return {"dim": spec.towers[name].settings.dim, "modalities": list(spec.modalities)}

    def operations(self, spec: CompositionSpec) -> Iterator[Operation]:
        return (Operation("next", f"next.{name}", name, None) for name in self.names(spec))


@dataclass(frozen=True)
class Registered(PartKind):
    """The section ``towers.<name>.parts``: a kind that a package registers as an entry point of `zippkit.parts`."""

    group: str

    def names(self, spec: CompositionSpec) -> list[str]:
        return [name for name, tower in spec.towers.items() if self.group in tower.parts]

    def made_of(self, spec: CompositionSpec, name: str) -> dict[str, Any]:
        tower = spec.towers[name]
        config = part_settings(tower, self.group)
        return {"dim": tower.settings.dim, "config": config.model_dump(mode="json")}


BUILT_IN: Sequence[PartKind] = (
    InputProjections(),
    Adapters(),
    Vocabularies(),
    Links(),
    ContrastiveLosses(),
    NextModality(),
)
"""In the order of parameter groups; around a tower, from the outside in."""


def part_kinds(spec: CompositionSpec) -> list[PartKind]:
    """Every kind that a spec may have parts of, those of other packages first."""
    registered = dict.fromkeys(kind for tower in spec.towers.values() for kind in tower.parts)
    return [*map(Registered, registered), *BUILT_IN]


def part_names(spec: CompositionSpec) -> list[str]:
    """``group.name`` of every part that the spec asks for, besides its towers."""
    return [f"{kind.group}.{name}" for kind in part_kinds(spec) for name in kind.names(spec)]


def frozen_parts(spec: CompositionSpec) -> list[str]:
    """``group.name`` of every part that the spec freezes, besides its towers."""
    return [f"{kind.group}.{name}" for kind in part_kinds(spec) for name in kind.names(spec) if kind.frozen(spec, name)]


def group_names(spec: CompositionSpec) -> list[str]:
    """Names of the parameter groups: one for each tower with weights of its own, and one for each part."""
    return [*(f"towers.{name}" for name, tower in spec.towers.items() if tower.share_with is None), *part_names(spec)]


def link_called(spec: CompositionSpec, label: str) -> LinkSpec:
    """The link of that name."""
    if "links" not in spec.kept:
        spec.kept["links"] = {link.label: link for link in reversed(spec.links)}
    found: LinkSpec = spec.kept["links"][label]
    return found


def part_settings(tower: TowerSpec, kind: str) -> Any:
    """The checked Config of a registered part of a sound spec's tower."""
    return registry.config_class(registry.PARTS, kind).model_validate(tower.parts[kind])
