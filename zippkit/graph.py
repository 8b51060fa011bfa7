"""The composition as a graph of (tower, depth): where each link acts, and whether it can be ordered at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx

from zippkit.config import TowerConfig
from zippkit.errors import Problem, SpecError
from zippkit.spec import CompositionSpec, LinkSpec
from zippkit.validation import Complaint
from zippkit.yaml_file import dotted

Node = tuple[str, int]
"""A tower and a depth: its state after that many layers, before any link rewrites it."""


@dataclass(frozen=True, order=True)
class LinkSite:
    """One place where a link acts."""

    link: str
    index: int
    """Which site of its link this is, from 0."""
    source: str
    source_depth: int
    target: str
    target_depth: int

    def __str__(self) -> str:
        return f"{self.link}.{self.index}: {self.source}[{self.source_depth}] -> {self.target}[{self.target_depth}]"


@dataclass(frozen=True)
class Graph:
    """Towers, sites and the dependencies between their states."""

    towers: dict[str, TowerConfig]
    sites: tuple[LinkSite, ...]
    """In spec order; several sites of one target depth act in this order."""
    states: nx.DiGraph[Node]


def _sites(i: int, link: LinkSpec, source: TowerConfig, target: TowerConfig) -> Iterator[LinkSite | Complaint]:
    """The link's sites, or what is wrong with them."""
    if link.sites is not None:
        for j, site in enumerate(link.sites):
            if site.source > source.n_layers:
                yield (
                    ("links", i, "sites", j, "from"),
                    f"depth {site.source} of {link.source!r}, which has {source.n_layers} layers",
                )
            if site.target > target.n_layers:
                yield (
                    ("links", i, "sites", j, "into"),
                    f"depth {site.target} of {link.target!r}, which has {target.n_layers} layers",
                )
            yield LinkSite(link.label, j, link.source, site.source, link.target, site.target)
        return
    if link.every is None:
        return
    depths = range(link.every, target.n_layers + 1, link.every)
    if not depths:
        yield ("links", i, "every"), f"got {link.every}, but {link.target!r} has only {target.n_layers} layers"
    if link.source_every and len(depths) * link.source_every > source.n_layers:
        have = source.n_layers // link.source_every
        yield (
            ("links", i, "source_every"),
            f"{link.target!r} has {len(depths)} sites, but {link.source!r} ({source.n_layers} layers, every "
            f"{link.source_every}) has only {have} to read; expected at most {source.n_layers // max(len(depths), 1)}",
        )
    for j, depth in enumerate(depths):
        yield LinkSite(link.label, j, link.source, _source_depth(link, j, depth, source, target), link.target, depth)


def _source_depth(link: LinkSpec, index: int, depth: int, source: TowerConfig, target: TowerConfig) -> int:
    if link.source_depth == "final":
        return source.n_layers
    if link.source_every:
        return (index + 1) * link.source_every
    # The same relative depth, rounded half up, and never the bare embedding.
    return max(1, (2 * depth * source.n_layers + target.n_layers) // (2 * target.n_layers))


def find_graph(spec: CompositionSpec) -> tuple[Graph | None, list[Complaint]]:
    """The graph of a spec, or everything that keeps it from having one."""
    towers = {name: config for name, tower in spec.towers.items() if (config := tower.resolved[0]) is not None}
    complaints = list(spec.complaints())
    sites: list[LinkSite] = []
    for i, link in enumerate(spec.links):
        placed = link.source in towers and link.target in towers
        for found in _sites(i, link, towers[link.source], towers[link.target]) if placed else ():
            if isinstance(found, LinkSite):
                sites.append(found)
            else:
                complaints.append(found)
    if complaints:
        return None, complaints
    states: nx.DiGraph[Node] = nx.DiGraph()
    for name, tower in towers.items():
        # One node past the last layer stands for the head, which reads what the last site wrote.
        nx.add_path(states, [(name, depth) for depth in range(tower.n_layers + 2)])
    states.add_edges_from(((s.source, s.source_depth), (s.target, s.target_depth + 1)) for s in sites)
    try:
        cycle = nx.find_cycle(states)
    except nx.NetworkXNoCycle:
        return Graph(towers, tuple(sites), states), []
    # Steps inside one tower say nothing; the path is told by the states that another tower reads.
    crossings = [edge for edge in cycle if edge[0][0] != edge[1][0]] or cycle
    nodes = [edge[0] for edge in crossings]
    path = " -> ".join(f"{tower}[{depth}]" for tower, depth in [*nodes, nodes[0]])
    return None, [(("links",), f"the links cannot be ordered, each of these needs the one before it: {path}")]


def build_graph(spec: CompositionSpec) -> Graph:
    """Place every link and order the states.

    Raises:
        SpecError: everything that is wrong with the spec, cycles included.
    """
    graph, complaints = find_graph(spec)
    if graph is None:
        raise SpecError([Problem(spec.name, 0, dotted(place), message) for place, message in complaints])
    return graph
