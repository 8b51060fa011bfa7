"""Differences between two compositions: parts, sites, and the parameters of their models, without any weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from zippkit.model.meta_device import meta_model
from zippkit.plan.parts import part_of
from zippkit.report.spec_diff import SpecDiff, diff_specs
from zippkit.spec.composition_spec import CompositionSpec


class Parameter(NamedTuple):
    """Shape of a parameter, and whether it is trained."""

    shape: tuple[int, ...]
    trained: bool

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Difference:
    """From one composition to another."""

    spec: SpecDiff
    added: Mapping[str, Parameter]
    """By their names in the model; what is shared carries the first of its names."""
    removed: Mapping[str, Parameter]
    changed: Mapping[str, tuple[Parameter, Parameter]]
    """Parameters of another shape, or trained in only one of the two."""

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.spec.same and not (self.added or self.removed or self.changed)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data, parameter by parameter."""
        spec = asdict(self.spec)
        sites = {what: spec.pop(f"sites_{what}") for what in ("added", "removed", "moved")}
        parameters: dict[str, Any] = {
            "added": {name: each._asdict() for name, each in self.added.items()},
            "removed": {name: each._asdict() for name, each in self.removed.items()},
            "changed": {n: {"old": a._asdict(), "new": b._asdict()} for n, (a, b) in self.changed.items()},
        }
        return {"same": self.same, **spec, "sites": sites, "parameters": parameters}

    def __str__(self) -> str:
        return "\n".join(self._lines()) or "no difference"

    def _lines(self) -> Iterator[str]:
        spec = self.spec
        yield from _marked("", removed=spec.removed, added=spec.added, changed=spec.changed)
        yield from _marked("site ", removed=spec.sites_removed, added=spec.sites_added, changed=spec.sites_moved)
        changed = [
            f"{part}: {_told(*(old for old, _ in each))} => {_told(*(new for _, new in each))}"
            for part, each in _by_part(self.changed).items()
        ]
        removed, added = (
            [f"{part}: {_told(*each)}" for part, each in _by_part(found).items()]
            for found in (self.removed, self.added)
        )
        yield from _marked("parameters of ", removed=removed, added=added, changed=changed)


def diff(old: CompositionSpec, new: CompositionSpec, *, weights: bool = True) -> Difference:
    """Compare two compositions; no weights need to be there.

    Args:
        old: one composition.
        new: another one.
        weights: whether it matters where weights come from; False for what was saved, which holds its own.

    Raises:
        SpecError: everything that is wrong with either spec.
    """
    there, here = _parameters(old), _parameters(new)
    return Difference(
        diff_specs(old, new, weights=weights),
        added={name: here[name] for name in sorted(here.keys() - there)},
        removed={name: there[name] for name in sorted(there.keys() - here)},
        changed={n: (there[n], here[n]) for n in sorted(there.keys() & here.keys()) if there[n] != here[n]},
    )


def _parameters(spec: CompositionSpec) -> dict[str, Parameter]:
    model, _ = meta_model(spec)
    return {name: Parameter(tuple(each.shape), each.requires_grad) for name, each in model.named_parameters()}


def _by_part(found: Mapping[str, Any]) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = {}
    for name, each in found.items():
        grouped.setdefault(part_of(name), []).append(each)
    return grouped


def _told(*found: Parameter) -> str:
    trained = sum(each.size for each in found if each.trained)
    return f"{len(found)} tensors, {sum(each.size for each in found):,} parameters ({trained:,} trained)"


def _marked(what: str, removed: Any, added: Any, changed: Any) -> Iterator[str]:
    for mark, lines in (("-", removed), ("+", added), ("~", changed)):
        yield from (f"{mark} {what}{line}" for line in lines)
