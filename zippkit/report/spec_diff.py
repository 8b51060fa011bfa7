"""Differences between two compositions, part by part and site by site, however their specs write it down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zippkit.plan.graph import LinkSite, build_graph
from zippkit.plan.parts import Parts, parts
from zippkit.spec.composition_spec import CompositionSpec


@dataclass(frozen=True)
class Change:
    """A value that differs in a part which both compositions have."""

    place: str
    """Such as ``towers.text.config.dim``; a link's name where one of its sites has moved."""
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.place}: {_shown(self.old)} => {_shown(self.new)}"


@dataclass(frozen=True)
class SpecDiff:
    """From one composition to another; parts are called as in tensors' names, such as ``links.speech_to_text``."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[Change, ...]
    sites_added: tuple[str, ...]
    """Sites that are new, those of new links included."""
    sites_removed: tuple[str, ...]
    sites_moved: tuple[Change, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not any(vars(self).values())


def diff_specs(old: CompositionSpec, new: CompositionSpec, *, weights: bool = True) -> SpecDiff:
    """Compare two valid specs; order of keys, and defaults that are written out, do not.

    Args:
        old: one composition.
        new: another one.
        weights: whether it matters where weights come from.
    """
    there, here = _described(old, weights), _described(new, weights)
    common = [name for name in there if name in here]
    changed = [change for name in common for change in _changes(name, there[name], here[name])]
    added, removed, moved = _site_changes(_sites(old), _sites(new))
    return SpecDiff(
        added=tuple(sorted(here.keys() - there)),
        removed=tuple(sorted(there.keys() - here)),
        changed=tuple(sorted([*changed, *_orders(old, new)], key=lambda change: change.place)),
        sites_added=added,
        sites_removed=removed,
        sites_moved=moved,
    )


def _described(spec: CompositionSpec, weights: bool) -> Parts:
    """Everything about each part but its sites."""
    found: Parts = {name: {key: part[key] for key in part if key != "sites"} for name, part in parts(spec).items()}
    for name, tower in spec.towers.items():
        own: dict[str, Any] = {"freeze": tower.freeze, "share_with": tower.share_with}
        if weights:
            path = tower.weights or getattr(tower.settings, "path", None)
            own["weights"] = None if path is None else str(path)
        found[f"towers.{name}"] |= own
    return found | {"name": {"": spec.name}}


def _changes(place: str, old: Any, new: Any) -> Iterator[Change]:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if old != new:
            yield Change(place, old, new)
        return
    for key in sorted({*old, *new}):
        yield from _changes(f"{place}.{key}" if key else place, old.get(key), new.get(key))


def _sites(spec: CompositionSpec) -> dict[str, list[LinkSite]]:
    found: dict[str, list[LinkSite]] = {link.label: [] for link in spec.links}
    for site in build_graph(spec).sites:
        found[site.link].append(site)
    return found


_Found = tuple[tuple[str, ...], tuple[str, ...], tuple[Change, ...]]


def _site_changes(old: Mapping[str, list[LinkSite]], new: Mapping[str, list[LinkSite]]) -> _Found:
    """Sites that are added, removed, and moved to another depth of their source or their target."""
    added: list[str] = []
    removed: list[str] = []
    moved: list[Change] = []
    for link in sorted({*old, *new}):
        there, here = list(old.get(link, ())), list(new.get(link, ()))
        _pairs(there, here, _ends)
        for same in (_target, _source):
            moved += [Change(link, _told(a), _told(b)) for a, b in _pairs(there, here, same)]
        removed += [f"{link}: {_told(site)}" for site in there]
        added += [f"{link}: {_told(site)}" for site in here]
    return tuple(added), tuple(removed), tuple(moved)


def _pairs(
    there: list[LinkSite], here: list[LinkSite], key: Callable[[LinkSite], Any]
) -> list[tuple[LinkSite, LinkSite]]:
    """Take out of both lists what has the same key, in order."""
    found = []
    for site in list(there):
        other = next((each for each in here if key(each) == key(site)), None)
        if other is not None:
            there.remove(site)
            here.remove(other)
            found.append((site, other))
    return found


def _source(site: LinkSite) -> tuple[str, int]:
    return site.source, site.source_depth


def _target(site: LinkSite) -> tuple[str, int]:
    return site.target, site.target_depth


def _ends(site: LinkSite) -> tuple[tuple[str, int], tuple[str, int]]:
    return _source(site), _target(site)


def _told(site: LinkSite) -> str:
    return f"{site.source}[{site.source_depth}] -> {site.target}[{site.target_depth}]"


def _orders(old: CompositionSpec, new: CompositionSpec) -> Iterator[Change]:
    """Where links that both have act on the same state in another order."""
    there, here = _acting(old), _acting(new)
    for place in there:
        before = [link for link in there[place] if link in here.get(place, ())]
        after = [link for link in here.get(place, ()) if link in there[place]]
        if before != after:
            yield Change("links at {}[{}]".format(*place), before, after)


def _acting(spec: CompositionSpec) -> dict[tuple[str, int], list[str]]:
    """Links in the order in which they act on each state."""
    found: dict[tuple[str, int], list[str]] = {}
    for site in build_graph(spec).sites:
        found.setdefault(_target(site), []).append(site.link)
    return found


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return ", ".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else str(value)
