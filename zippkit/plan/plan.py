"""The plan: the composition as an ordered program of small operations, pruned to what a batch needs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Literal

import networkx as nx

from zippkit.plan.graph import Graph, LinkSite

Kind = Literal["start", "project", "layer", "write", "read", "pool", "head", "next"]
_RANK: dict[Kind, int] = {"start": 0, "project": 1, "layer": 4, "write": 5, "read": 6, "pool": 7, "head": 8, "next": 9}


@dataclass(frozen=True)
class Op:
    """One step of the program.

    ``start`` embeds a tower's tokens, ``layer`` runs its layer number ``depth``, ``write`` puts a source's state after
    ``depth`` layers into a link's memory, ``read`` rewrites a target's state after ``depth`` layers, and ``head`` gives
    logits. Where towers share the attention of their layers ``depth``, ``project`` makes a tower's own queries, keys
    and values, ``write`` hands keys and values on, ``read`` takes another tower's, and ``layer`` attends over them all.
    ``pool`` takes the state after ``depth`` layers for the contrastive loss ``contrast``, and ``next`` tells from the
    last state at a segment's end what comes after it.
    """

    kind: Kind
    tower: str
    depth: int
    site: LinkSite | None = None
    contrast: str | None = None

    @property
    def inside(self) -> bool:
        """Whether it is part of shared attention, so that it comes before the layer ``depth`` is done."""
        return self.kind == "project" or (self.site is not None and self.site.acts == "attention")

    @property
    def rank(self) -> int:
        """Its place among the operations of one depth."""
        return _RANK[self.kind] - (3 if self.site is not None and self.inside else 0)

    def __str__(self) -> str:
        if self.contrast is not None:
            return f"{self.kind:<5} {self.tower}[{self.depth}] for {self.contrast}"
        if self.site is None:
            return f"{self.kind:<5} {self.tower}" + (f"[{self.depth}]" if self.kind in ("layer", "project") else "")
        other = (
            f"for {self.site.target}" if self.kind == "write" else f"from {self.site.source}[{self.site.source_depth}]"
        )
        return f"{self.kind:<5} {self.tower}[{self.depth}] {other} by {self.site.link}.{self.site.index}"


@dataclass(frozen=True)
class Plan:
    """Operations in an order in which they can run, and what each one needs."""

    ops: tuple[Op, ...]
    needs: tuple[tuple[Op, frozenset[Op]], ...]

    def __str__(self) -> str:
        return "\n".join(f"{i:>3}  {op}" for i, op in enumerate(self.ops))

    def prune(
        self,
        heads: Set[str],
        sees: Set[tuple[str, str]],
        writes: Set[LinkSite] = frozenset(),
        given: Set[LinkSite] = frozenset(),
        layers: Set[str] = frozenset(),
        contrasts: Set[str] = frozenset(),
        nexts: Set[str] = frozenset(),
    ) -> Plan:
        """Only the operations that some wanted output depends on.

        Args:
            heads: towers whose logits are wanted.
            sees: (target, source) pairs in which some target token has a source token before it; the links of
                other pairs are blind everywhere and are not run.
            writes: sites whose memory is wanted, for a tower that reads it later.
            given: sites whose memory is there already.
            layers: towers whose every layer is to run, to fill its cache, without logits.
            contrasts: contrastive losses that are wanted.
            nexts: towers that are to tell what comes after their segments.
        """
        needs: dict[Op, set[Op]] = {}
        dropped: dict[Op, Op] = {}
        for op, before in self.needs:
            kept = {dropped.get(b, b) for b in before}
            if op.site is not None and op.kind == "read":
                if op.site in given:
                    kept = {b for b in kept if b.kind != "write"}
                elif (op.site.target, op.site.source) not in sees:
                    # The state passes through: whoever needs this read needs what the read would have rewritten.
                    (dropped[op],) = (b for b in kept if b.kind != "write")
                    continue
            needs[op] = kept
        last = {op.tower: op for op in needs if op.kind == "layer"}
        wanted = [
            op
            for op in needs
            if (op.kind == "head" and op.tower in heads)
            or (op.kind == "write" and op.site in writes)
            or (op.kind == "next" and op.tower in nexts)
            or op.contrast in contrasts
        ]
        wanted += [last[tower] for tower in layers]
        reached: set[Op] = set()
        while wanted:
            op = wanted.pop()
            if op not in reached:
                reached.add(op)
                wanted.extend(needs[op])
        return Plan(
            tuple(op for op in self.ops if op in reached),
            tuple((op, frozenset(needs[op])) for op, _ in self.needs if op in reached),
        )

    def gradient_free(self, trains: Callable[[Op], bool]) -> frozenset[Op]:
        """Operations behind which nothing is trained: they run without a gradient.

        Args:
            trains: whether an operation's own parameters are trained.
        """
        needs = dict(self.needs)
        carrying: set[Op] = set()
        for op in self.ops:
            if trains(op) or needs[op] & carrying:
                carrying.add(op)
        return frozenset(self.ops) - carrying


State = tuple[str, int]
"""A tower and a depth."""


class _Sites:
    """Sites by the state that they read and by the one that they rewrite, in spec order."""

    def __init__(self, sites: Iterable[LinkSite]) -> None:
        self.reading: dict[State, list[LinkSite]] = {}
        self.rewriting: dict[State, list[LinkSite]] = {}
        for site in sites:
            self.reading.setdefault((site.source, site.source_depth), []).append(site)
            self.rewriting.setdefault((site.target, site.target_depth), []).append(site)

    def touch(self, state: State) -> bool:
        return state in self.reading or state in self.rewriting

    def ops(self, tower: str, depth: int, state: Op) -> Generator[tuple[Op, set[Op]], None, Op]:
        """What the links do with a tower's state at one depth; returns the operation that leaves it."""
        for site in self.reading.get((tower, depth), ()):
            yield Op("write", tower, depth, site), {state}
        for site in self.rewriting.get((tower, depth), ()):
            before, state = state, Op("read", tower, depth, site)
            yield state, {before, Op("write", site.source, site.source_depth, site)}
        return state


def _dependencies(graph: Graph) -> Iterator[tuple[Op, set[Op]]]:
    inside = _Sites(site for site in graph.sites if site.acts == "attention")
    outside = _Sites(site for site in graph.sites if site.acts != "attention")
    contrasts: dict[State, list[str]] = {}
    for contrast, taken in graph.contrasts:
        contrasts.setdefault(taken, []).append(contrast)
    for tower, config in graph.towers.items():
        state = Op("start", tower, 0)
        yield state, set()
        for depth in range(config.n_layers + 1):
            if inside.touch((tower, depth)):
                before, state = state, Op("project", tower, depth)
                yield state, {before}
                state = yield from inside.ops(tower, depth, state)
            if depth:
                before, state = state, Op("layer", tower, depth)
                yield state, {before}
            for contrast in contrasts.get((tower, depth), ()):
                yield Op("pool", tower, depth, contrast=contrast), {state}
            state = yield from outside.ops(tower, depth, state)
        if config.predicts:
            yield Op("head", tower, config.n_layers), {state}
        if graph.layout.tells_next:
            yield Op("next", tower, config.n_layers), {state}


def build_plan(graph: Graph) -> Plan:
    """Order every operation of the composition, layer by layer across the towers."""
    needs = dict(_dependencies(graph))
    program: nx.DiGraph[Op] = nx.DiGraph()
    program.add_nodes_from(needs)
    program.add_edges_from((before, op) for op, all_before in needs.items() for before in all_before)
    taps: dict[tuple[str, int, bool], list[Op]] = {}
    for op in needs:
        if op.kind in ("write", "pool"):
            taps.setdefault((op.tower, op.depth, op.inside), []).append(op)
    for read in (op for op in needs if op.kind == "read"):
        # A source is read as it was before any link rewrote it.
        program.add_edges_from((tap, read) for tap in taps.get((read.tower, read.depth, read.inside), ()))
    place = {tower: i for i, tower in enumerate(graph.towers)}
    ops = tuple(nx.lexicographical_topological_sort(program, key=lambda op: (op.depth, op.rank, place[op.tower])))
    return Plan(ops, tuple((op, frozenset(needs[op])) for op in ops))
