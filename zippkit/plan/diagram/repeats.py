"""Runs of layers and links that repeat: of thirty, the first and the last are drawn, and one that says how many.

A site is folded only if both its ends are, so that a folded arrow joins two folded boxes (or a tap that all share).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from zippkit.plan.diagram.freezing import Freezing, LayerStyle
from zippkit.plan.graph import Graph, LinkSite
from zippkit.spec.composition_spec import CompositionSpec

FEWEST = 6
"""Repeats that are worth folding."""


class Zone(NamedTuple):
    """Depths of a tower, ``first`` to ``last``, that are drawn as one floor."""

    tower: str
    first: int
    last: int
    period: int

    @property
    def n_repeats(self) -> int:
        return (self.last - self.first + 1) // self.period

    def __contains__(self, depth: object) -> bool:
        return isinstance(depth, int) and self.first <= depth <= self.last


@dataclass(frozen=True)
class Repeats:
    """What of a composition is folded."""

    zones: Mapping[str, Zone] = field(default_factory=dict)
    """By tower."""
    folded: Mapping[LinkSite, tuple[LinkSite, ...]] = field(default_factory=dict)
    """The first of several sites that are drawn as one, and all of them."""

    def zone(self, tower: str, depth: int) -> Zone | None:
        """The zone in which a tower's state of some depth lies."""
        zone = self.zones.get(tower)
        return zone if zone is not None and depth in zone else None

    @cached_property
    def hidden(self) -> set[LinkSite]:
        """Sites that are drawn by another one."""
        return {site for first, sites in self.folded.items() for site in sites if site != first}


class Mark(NamedTuple):
    """What must be equal in two layers of a run."""

    links: frozenset[tuple[str, str]]
    """Those that read the state after the layer, or act on it."""
    style: LayerStyle


def find_repeats(spec: CompositionSpec, graph: Graph) -> Repeats:
    """The longest run of each tower that can be folded."""
    runs = (_longest(spec, graph, tower) for tower in graph.towers)
    zones = {zone.tower: zone for zone in runs if zone is not None}
    states = defaultdict(set)
    for site in graph.sites:
        states[site.link].add((site.source, site.source_depth))
    several = {link for link, read in states.items() if len(read) > 1}
    while True:
        shrunk = (_shrunk(graph, Repeats(zones), zone, several) for zone in zones.values())
        left = {zone.tower: zone for zone in shrunk if zone.n_repeats >= FEWEST - 2}
        if left == zones:
            return Repeats(zones, _groups(graph, Repeats(zones)))
        zones = left


def _longest(spec: CompositionSpec, graph: Graph, tower: str) -> Zone | None:
    """The run of a tower that hides most layers, without its first and its last repeat."""
    n_layers, styles = graph.towers[tower].n_layers, Freezing(spec.towers[tower])
    marks = [Mark(_links_at(graph, tower, depth), styles.layer(depth)) for depth in range(n_layers + 1)]
    runs = (run for period in range(1, n_layers // FEWEST + 1) for run in _runs(marks, period))
    zones = [Zone(tower, first + 1, first + period * (n - 2), period) for first, n, period in runs]
    return max(zones, key=lambda zone: zone.last - zone.first, default=None)


def _links_at(graph: Graph, tower: str, depth: int) -> frozenset[tuple[str, str]]:
    taps = {("tap", site.link) for site in graph.sites_from[tower] if site.source_depth == depth}
    sites = {("site", site.link) for site in graph.sites_into[tower] if site.target_depth == depth}
    return frozenset(taps | sites)


def _runs(marks: Sequence[Mark], period: int) -> Iterator[tuple[int, int, int]]:
    """First depth, number of repeats and period of each run that is long enough; a repeat ends where most links are."""
    depth = 1
    while depth < len(marks):
        end = depth
        while end + period < len(marks) and marks[end + period] == marks[end]:
            end += 1
        within = range(depth, min(depth + period, len(marks)))
        first = max(within, key=lambda each: len(marks[each].links))
        n_repeats = (end + period - 1 - first) // period + 1
        if marks[first].links and n_repeats >= FEWEST:
            yield first, n_repeats, period
        depth = max(end, depth + 1)


def _shrunk(graph: Graph, repeats: Repeats, zone: Zone, several: Set[str]) -> Zone:
    """The longest part of a zone all of whose arrows join it with another zone, or with a tap that all share.

    Args:
        graph: the composition.
        repeats: the zones so far.
        zone: one of them.
        several: links that read several states.
    """
    open_ = {site.source_depth for site in graph.sites_from[zone.tower] if not _target_folds(repeats, site)}
    for site in graph.sites_into[zone.tower]:
        if site.link in several and not _source_folds(repeats, site):
            open_.add(site.target_depth)
    best, start = range(0), zone.first
    for first in range(zone.first, zone.last + 1, zone.period):
        if open_ & set(range(first, first + zone.period)):
            start = first + zone.period
        best = max(best, range(start, first + zone.period), key=len)
    return zone._replace(first=best.start, last=best.stop - 1)


def _source_folds(repeats: Repeats, site: LinkSite) -> bool:
    return repeats.zone(site.source, site.source_depth) is not None


def _target_folds(repeats: Repeats, site: LinkSite) -> bool:
    return repeats.zone(site.target, site.target_depth) is not None


def _groups(graph: Graph, repeats: Repeats) -> dict[LinkSite, tuple[LinkSite, ...]]:
    together: dict[str, list[LinkSite]] = defaultdict(list)
    for site in graph.sites:
        if repeats.zone(site.target, site.target_depth):
            together[site.link].append(site)
    return {sites[0]: tuple(sites) for sites in together.values()}
