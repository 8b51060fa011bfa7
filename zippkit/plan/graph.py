"""The composition as a graph of (tower, depth): where each link acts, and whether it can be ordered at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx

from zippkit.errors import Problem, SpecError
from zippkit.plan.sequence_layout import Insert, Modality, SequenceLayout
from zippkit.spec.checks.spec_checks import spec_complaints
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import Acts, TowerConfig
from zippkit.spec.link_spec import LinkSpec
from zippkit.spec.part_kinds import Operation, part_kinds
from zippkit.spec.validation import Complaint
from zippkit.spec.yaml_document import dotted

Node = tuple[str, float]
"""A tower and a depth: its state after that many layers before any link rewrites it; half a layer more stands for the
state that its links have rewritten, of which the next layer's attention is made."""


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
    acts: Acts = field(default="after_layer", compare=False)

    def __str__(self) -> str:
        return f"{self.link}.{self.index}: {self.source}[{self.source_depth}] -> {self.target}[{self.target_depth}]"


@dataclass(frozen=True)
class Graph:
    """Towers, sites and the dependencies between their states."""

    towers: dict[str, TowerConfig]
    sites: tuple[LinkSite, ...]
    """In spec order; several sites of one target depth act in this order."""
    layout: SequenceLayout
    """The layout of a sequence that the composition asks for."""
    operations: tuple[Operation, ...] = ()
    """Operations of parts on the towers' states, besides links."""

    @property
    def modalities(self) -> dict[str, Modality]:
        """Everything that a segment can be of."""
        return self.layout.modalities(self.towers)

    @cached_property
    def sites_from(self) -> Mapping[str, Sequence[LinkSite]]:
        """Sites by the tower that they read, in spec order."""
        found: dict[str, list[LinkSite]] = {name: [] for name in self.towers}
        for site in self.sites:
            found[site.source].append(site)
        return found

    @cached_property
    def sites_into(self) -> Mapping[str, Sequence[LinkSite]]:
        """Sites by the tower that they rewrite, in spec order."""
        found: dict[str, list[LinkSite]] = {name: [] for name in self.towers}
        for site in self.sites:
            found[site.target].append(site)
        return found

    @property
    def readers(self) -> dict[str, TowerConfig]:
        """The tower that reads each modality."""
        return {name: self.towers[modality.tower] for name, modality in self.modalities.items()}


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
            yield _site(link, j, site.source, site.target)
        return
    if link.settings.acts == "embedding":
        yield _site(link, 0, 0 if link.source_depth == "embedding" else source.n_layers, 0)
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
        source_depth = _source_depth(link, j, depth, source, target)
        if source_depth > source.n_layers:
            yield (
                ("links", i, "every"),
                f"attention is shared at one depth, but {link.source!r} has only {source.n_layers} layers; "
                "expected `sites` that both have",
            )
            return
        yield _site(link, j, source_depth, depth)


def _site(link: LinkSpec, index: int, source_depth: int, layer: int) -> LinkSite:
    depth = _acting_depth(link, layer)
    return LinkSite(link.label, index, link.source, source_depth, link.target, depth, link.settings.acts)


def _acting_depth(link: LinkSpec, layer: int) -> int:
    # The state before a layer is the one after the layer before it.
    return layer - 1 if link.settings.acts == "before_layer" else layer


def _source_depth(link: LinkSpec, index: int, depth: int, source: TowerConfig, target: TowerConfig) -> int:
    if link.settings.acts == "attention":
        return depth
    if link.source_depth:
        return source.n_layers if link.source_depth == "final" else 0
    if link.source_every:
        return (index + 1) * link.source_every
    # The same relative depth as the state that is rewritten, rounded half up; the bare embedding only for an embedding.
    acting = _acting_depth(link, depth)
    return max(min(acting, 1), (2 * acting * source.n_layers + target.n_layers) // (2 * target.n_layers))


def find_graph(spec: CompositionSpec) -> tuple[Graph | None, list[Complaint]]:
    """The graph of a spec, or everything that keeps it from having one; worked out once, and carried by the spec."""
    if "graph" not in spec.kept:
        spec.kept["graph"] = _find_graph(spec)
    graph, complaints = spec.kept["graph"]
    return graph, list(complaints)


def _find_graph(spec: CompositionSpec) -> tuple[Graph | None, list[Complaint]]:
    towers = {name: config for name, tower in spec.towers.items() if (config := tower.resolved[0]) is not None}
    complaints = list(spec_complaints(spec))
    sites: list[LinkSite] = []
    for i, link in enumerate(spec.links):
        placed = link.source in towers and link.target in towers and link.resolved[0] is not None
        for found in _sites(i, link, towers[link.source], towers[link.target]) if placed else ():
            if isinstance(found, LinkSite):
                sites.append(found)
            else:
                complaints.append(found)
    wrong = {key_path[1] for key_path, _ in complaints if key_path[0] == "links" and len(key_path) > 1}
    labels = {link.label for i, link in enumerate(spec.links) if i not in wrong}
    complaints += _circle(towers, [site for site in sites if site.link in labels])
    if complaints:
        return None, complaints
    operations = tuple(operation for kind in part_kinds(spec) for operation in kind.operations(spec))
    return Graph(towers, tuple(sites), _layout(spec, towers), operations), []


def _circle(towers: Mapping[str, TowerConfig], sites: Iterable[LinkSite]) -> Iterator[Complaint]:
    """Yield the cycle that keeps the states from being ordered, if there is one."""
    states: nx.DiGraph[Node] = nx.DiGraph()
    for name, tower in towers.items():
        nx.add_path(states, [(name, half / 2) for half in range(2 * tower.n_layers + 2)])
    for s in sites:
        inside = s.acts == "attention"
        source, target = (s.source_depth - 0.5, s.target_depth) if inside else (s.source_depth, s.target_depth + 0.5)
        states.add_edge((s.source, source), (s.target, target))
    # Looking for the cycle itself takes the square of the states, so only where there is one.
    waiting = next((each for each in nx.strongly_connected_components(states) if len(each) > 1), None)
    if waiting is None:
        return
    cycle = nx.find_cycle(states.subgraph(waiting))
    # Steps inside one tower say nothing; the path is told by the states that another tower reads.
    crossings = [edge for edge in cycle if edge[0][0] != edge[1][0]] or cycle
    nodes = [edge[0] for edge in crossings]
    path = " -> ".join(f"{tower}[{math.ceil(depth)}]" for tower, depth in [*nodes, nodes[0]])
    yield ("links",), f"the links cannot be ordered, each of these needs the one before it: {path}"


def _layout(spec: CompositionSpec, towers: dict[str, TowerConfig]) -> SequenceLayout:
    """The sequence layout that the links ask for, and the modalities that towers host behind their own ids."""
    hosted: dict[str, Modality] = {}
    for host, tower in spec.towers.items():
        first = towers[host].vocab_size or 0
        for name, added in tower.extend_vocabulary.items():
            hosted[name] = Modality(host, first, added.size, added.frame)
            first += added.size
    at_embedding = [link for link in spec.links if link.settings.acts == "embedding"]
    in_attention = [link for link in spec.links if link.settings.acts == "attention"]
    return SequenceLayout(
        inserts=tuple(Insert(link.source, link.target, link.settings.n_slots) for link in at_embedding),
        shared=frozenset(name for link in in_attention for name in (link.source, link.target)),
        clocks=frozenset(frozenset((link.source, link.target)) for link in spec.links if link.clock == "sync"),
        hosted=hosted,
        tells_next=spec.next is not None,
    )


def build_graph(spec: CompositionSpec) -> Graph:
    """Place every link and order the states.

    Raises:
        SpecError: everything that is wrong with the spec, cycles included.
    """
    graph, complaints = find_graph(spec)
    if graph is None:
        raise SpecError([Problem(spec.name, 0, dotted(key_path), message) for key_path, message in complaints])
    return graph
