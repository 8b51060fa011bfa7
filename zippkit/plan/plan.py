"""The plan: the composition as an ordered program of small operations, pruned to what a batch needs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Set
from dataclasses import dataclass

import networkx as nx

from zippkit.plan.graph import Graph, LinkSite
from zippkit.spec.part_kinds import Operation

ORDER = (
    "start",
    "project",
    "write inside",
    "read inside",
    "layer",
    "write",
    "read",
    "pool",
    "head",
    "next",
)
"""The operations of one depth, in the order in which they run where nothing else decides; "inside" a layer's attention.
What parts of other packages do comes last."""
_RANK = {name: rank for rank, name in enumerate(ORDER)}


@dataclass(frozen=True)
class Op:
    """One step of the program.

    ``start`` embeds a tower's tokens, ``layer`` runs its layer number ``depth``, ``write`` puts a source's state after
    ``depth`` layers into a link's memory, ``read`` rewrites a target's state after ``depth`` layers, and ``head`` gives
    logits. Where towers share the attention of their layers ``depth``, ``project`` makes a tower's own queries, keys
    and values, ``write`` hands keys and values on, ``read`` takes another tower's, and ``layer`` attends over them all.
    Any other kind belongs to a ``part`` (``group.name``), which does it: ``pool`` takes the state after ``depth``
    layers for a contrastive loss, and ``next`` tells from the last state at a segment's end what comes after it.
    """

    kind: str
    tower: str
    depth: int
    site: LinkSite | None = None
    part: str | None = None

    @property
    def inside(self) -> bool:
        """Whether it is part of shared attention, so that it comes before the layer ``depth`` is done."""
        return self.kind == "project" or (self.site is not None and self.site.acts == "attention")

    @property
    def rank(self) -> int:
        """Its place among the operations of one depth."""
        inside = " inside" if self.site is not None and self.inside else ""
        return _RANK.get(self.kind + inside, len(ORDER))

    def __str__(self) -> str:
        owner = (self.part or "").partition(".")[2]
        if owner not in ("", self.tower):
            return f"{self.kind:<5} {self.tower}[{self.depth}] for {owner}"
        if self.site is None:
            return f"{self.kind:<5} {self.tower}" + (f"[{self.depth}]" if self.kind in ("layer", "project") else "")
        other = (
            f"for {self.site.target}" if self.kind == "write" else f"from {self.site.source}[{self.site.source_depth}]"
        )
        return f"{self.kind:<5} {self.tower}[{self.depth}] {other} by {self.site.link}.{self.site.index}"


@dataclass(frozen=True)
class Wanted:
    """The outputs that a run of the plan is for; operations that none of them depends on are not run."""

    heads: Set[str] = frozenset()
    """Towers whose logits are wanted."""
    sees: Set[tuple[str, str]] = frozenset()
    """(target, source) pairs in which some target token has a source token before it; the links of other pairs are
    blind everywhere and are not run."""
    writes: Set[LinkSite] = frozenset()
    """Sites whose memory is wanted, for a tower that reads it later."""
    given: Set[LinkSite] = frozenset()
    """Sites whose memory is there already."""
    layers: Set[str] = frozenset()
    """Towers whose every layer is to run, to fill its cache, without logits."""
    parts: Set[str] = frozenset()
    """Parts (``group.name``) whose own operations are wanted: contrastive losses, heads that tell what comes next."""
    kept: Set[str] = frozenset()
    """Towers whose states are there already wherever they are read; none of their layers is run."""

    def asks_for(self, op: Op) -> bool:
        """Whether an operation is wanted for its own sake."""
        if op.part is not None:
            return op.part in self.parts
        return (op.kind == "head" and op.tower in self.heads) or (op.kind == "write" and op.site in self.writes)

    def has(self, op: Op) -> bool:
        """Whether the state that an operation makes is there already."""
        return op.tower in self.kept and op.kind in ("start", "layer")


@dataclass(frozen=True)
class Plan:
    """Operations in an order in which they can run, and what each one needs."""

    ops: tuple[Op, ...]
    needs: tuple[tuple[Op, frozenset[Op]], ...]

    def __str__(self) -> str:
        return "\n".join(f"{i:>3}  {op}" for i, op in enumerate(self.ops))

    def prune(self, wanted: Wanted) -> Plan:
        """Only the operations that some wanted output depends on."""
        needs: dict[Op, set[Op]] = {}
        dropped: dict[Op, Op] = {}
        for op, before in self.needs:
            kept = {dropped.get(b, b) for b in before}
            if op.site is not None and op.kind == "read":
                if op.site in wanted.given:
                    kept = {b for b in kept if b.kind != "write"}
                elif (op.site.target, op.site.source) not in wanted.sees:
                    # The state passes through: whoever needs this read needs what the read would have rewritten.
                    (dropped[op],) = (b for b in kept if b.kind != "write")
                    continue
            needs[op] = {b for b in kept if not wanted.has(b)}
        last = {op.tower: op for op in needs if op.kind == "layer"}
        open_ops = [op for op in needs if wanted.asks_for(op)] + [last[tower] for tower in wanted.layers]
        reached: set[Op] = set()
        while open_ops:
            op = open_ops.pop()
            if op not in reached:
                reached.add(op)
                open_ops.extend(needs[op])
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
        """Yield the links' operations on a tower's state at one depth; returns the operation that leaves it."""
        for site in self.reading.get((tower, depth), ()):
            yield Op("write", tower, depth, site), {state}
        for site in self.rewriting.get((tower, depth), ()):
            before, state = state, Op("read", tower, depth, site)
            yield state, {before, Op("write", site.source, site.source_depth, site)}
        return state


def _dependencies(graph: Graph) -> Iterator[tuple[Op, set[Op]]]:
    inside = _Sites(site for site in graph.sites if site.acts == "attention")
    outside = _Sites(site for site in graph.sites if site.acts != "attention")
    added: dict[tuple[str, int | None], list[Operation]] = {}
    for operation in graph.operations:
        added.setdefault((operation.tower, operation.depth), []).append(operation)
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
            for operation in added.get((tower, depth), ()):
                yield Op(operation.kind, tower, depth, part=operation.part), {state}
            state = yield from outside.ops(tower, depth, state)
        if config.predicts:
            yield Op("head", tower, config.n_layers), {state}
        for operation in added.get((tower, None), ()):
            yield Op(operation.kind, tower, config.n_layers, part=operation.part), {state}


def build_plan(graph: Graph) -> Plan:
    """Order every operation of the composition, layer by layer across the towers."""
    needs = dict(_dependencies(graph))
    program: nx.DiGraph[Op] = nx.DiGraph()
    program.add_nodes_from(needs)
    program.add_edges_from((before, op) for op, all_before in needs.items() for before in all_before)
    early = {(operation.tower, operation.depth, operation.part) for operation in graph.operations}
    taps: dict[tuple[str, int, bool], list[Op]] = {}
    for op in needs:
        if op.kind == "write" or (op.part is not None and (op.tower, op.depth, op.part) in early):
            taps.setdefault((op.tower, op.depth, op.inside), []).append(op)
    for read in (op for op in needs if op.kind == "read"):
        # A source is read as it was before any link rewrote it.
        program.add_edges_from((tap, read) for tap in taps.get((read.tower, read.depth, read.inside), ()))
    place = {tower: i for i, tower in enumerate(graph.towers)}
    ops = tuple(nx.lexicographical_topological_sort(program, key=lambda op: (op.depth, op.rank, place[op.tower])))
    return Plan(ops, tuple((op, frozenset(needs[op])) for op in ops))
