"""The state that generation keeps between steps: the towers' KV caches, and the links' memories, written or pending."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.model.links.base import Memory
from zippkit.plan.graph import LinkSite


class Growing:
    """A link's memory in buffers that double, so that what is there is not copied for each segment that comes."""

    def __init__(self, first: Memory, n_rows: int) -> None:
        self.lengths = [0] * n_rows
        """Entries of each row."""
        self._order = first.order.new_full((n_rows, 0), -1)
        self._tensors = tuple(tensor.new_zeros(n_rows, 0, *tensor.shape[2:]) for tensor in first.tensors)

    def append(self, memory: Memory, rows: Sequence[int]) -> None:
        """Put new entries behind those of ``rows``, one row of ``memory`` for each."""
        n_new = memory.order.shape[1]
        starts = [self.lengths[row] for row in rows]
        self._reserve(max(starts) + n_new)
        first = starts[0]
        at: tuple[Any, ...] = (slice(None), slice(first, first + n_new))
        if len(rows) < len(self.lengths) or min(starts) < max(starts):
            device = memory.order.device
            slots = torch.tensor(starts, device=device)[:, None] + torch.arange(n_new, device=device)
            at = (torch.tensor(rows, device=device)[:, None], slots)
        self._order[at] = memory.order
        for store, new in zip(self._tensors, memory.tensors, strict=True):
            store[at] = new
        for row in rows:
            self.lengths[row] += n_new

    def _reserve(self, n_slots: int) -> None:
        held = self._order.shape[1]
        if n_slots > held:
            # What comes first is a prompt, and often all: it gets no more than it needs.
            more = n_slots if held == 0 else max(n_slots, 2 * held)
            self._order = _padded(self._order, more, -1)
            self._tensors = tuple(_padded(tensor, more, 0) for tensor in self._tensors)

    def clear(self, row: int) -> None:
        """Forget a row's entries."""
        self.lengths[row] = 0
        self._order[row] = -1

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; -1 is a new one, without entries."""
        index = torch.tensor(rows, device=self._order.device)
        self.lengths = [0 if row < 0 else self.lengths[row] for row in rows]
        self._order = torch.where(index[:, None] < 0, -1, self._order[index])
        self._tensors = tuple(tensor[index] for tensor in self._tensors)

    def memory(self) -> Memory:
        """Everything so far; a view."""
        n_slots = max(self.lengths)
        return Memory(self._order[:, :n_slots], tuple(tensor[:, :n_slots] for tensor in self._tensors))


def _padded(tensor: Tensor, n_slots: int, value: int) -> Tensor:
    grown = tensor.new_full((tensor.shape[0], n_slots, *tensor.shape[2:]), value)
    grown[:, : tensor.shape[1]] = tensor
    return grown


@dataclass
class Pending:
    """States of segments that are not finished, step by step; nobody reads them before they are."""

    steps: list[tuple[Tensor, TowerBatch, frozenset[int]]] = field(default_factory=list)
    """(B, T, D) states, their tokens, and the rows that they are of."""
    since: dict[int, int] = field(default_factory=dict)
    """For each row with a segment that is not finished, the step at which it began."""

    def add(self, states: Tensor, tokens: TowerBatch, rows: Sequence[int]) -> None:
        """Keep a step's (B, T, D) states, which are of some rows."""
        for row in rows:
            self.since.setdefault(row, len(self.steps))
        self.steps.append((states, tokens, frozenset(rows)))

    def drop(self, row: int) -> None:
        """Forget the unfinished segment of a row that goes no further."""
        self.since.pop(row, None)
        if not self.since:
            self.steps.clear()

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; -1 is a new one, which has no segment that is not finished."""
        new = {old: number for number, old in enumerate(rows) if old >= 0}
        self.since = {new[row]: step for row, step in self.since.items() if row in new}
        steps = self.steps if self.since else []
        index = torch.tensor(rows, device=steps[0][0].device if steps else None)
        self.steps = [
            (
                states[index],
                tokens.mapped(lambda column: column[index]),
                frozenset(new[row] for row in of if row in new),
            )
            for states, tokens, of in steps
        ]

    def take(self, rows: Sequence[int]) -> tuple[Tensor, TowerBatch]:
        """The segments of ``rows``, which have advanced and ended together, whole and without gaps.

        Returns:
            (R, S, D) states, and their tokens; padding before those of a row that began later.
        """
        since = {row: self.since.pop(row) for row in rows}
        wanted = [i for i, (*_, of) in enumerate(self.steps) if any(since.get(row, i + 1) <= i for row in of)]
        states = torch.cat([self.steps[i][0] for i in wanted], dim=1)
        tokens = TowerBatch.join([self.steps[i][1] for i in wanted])
        begun = [sum(self.steps[i][1].tokens.shape[1] for i in wanted if i < since[row]) for row in rows]
        if not self.since:
            self.steps.clear()
        if len(rows) < len(states):
            index = torch.tensor(rows, device=states.device)
            states, tokens = states[index], tokens.mapped(lambda column: column[index])
        return states, tokens.hidden_before(begun) if any(begun) else tokens


Prepare = Callable[[Memory, int | None], Any]
"""`zippkit.model.links.base.LinkForm.prepare`."""


@dataclass
class Prepared:
    """Memories as those who read them step by step have laid them out."""

    found: dict[LinkSite, tuple[Memory, Any]] = field(default_factory=dict)

    def of(self, site: LinkSite, memory: Memory, prepare: Prepare, n_slots: int | None = None) -> Any:
        """What ``prepare`` makes of a memory, once for as long as it is the same."""
        held = self.found.get(site)
        if held is None or held[0] is not memory:
            held = self.found[site] = (memory, prepare(memory, n_slots))
        return held[1]


@dataclass
class Decoding:
    """Everything that generation keeps between steps."""

    n_rows: int
    rows: Sequence[int] = ()
    """Rows that the next step advances; all of them at first."""
    caches: dict[str, Any] = field(default_factory=dict)
    """Each tower's own cache."""
    n_slots: dict[str, int] = field(default_factory=dict)
    """How many slots of each tower's cache are in use in the longest row, the new tokens included."""
    memories: dict[LinkSite, Memory] = field(default_factory=dict)
    """The links' memories of finished segments."""
    pending: dict[LinkSite, Pending] = field(default_factory=dict)
    """States of unfinished segments, for the links to write later (`ZippedModel.commit`)."""
    prepared: Prepared = field(default_factory=Prepared)
    """The memories as decoding steps read them."""
    _growing: dict[LinkSite, Growing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = self.rows or range(self.n_rows)

    def keep(self, site: LinkSite, memory: Memory, rows: Sequence[int]) -> Memory:
        """Append to a link's memory of some rows; the whole memory."""
        growing = self._growing.setdefault(site, Growing(memory, self.n_rows))
        growing.append(memory, rows)
        self.memories[site] = growing.memory()
        return self.memories[site]

    def reserve(self, tower: str, n_slots: int) -> None:
        """Use at least so many slots of a tower's cache."""
        self.n_slots[tower] = max(self.n_slots[tower], n_slots)

    def select(self, rows: Sequence[int]) -> None:
        """Keep the memories of these rows, in this order; -1 is a new one, which has none."""
        self.n_rows, self.rows = len(rows), range(len(rows))
        for pending in self.pending.values():
            pending.select(rows)
        for growing in self._growing.values():
            growing.select(rows)
        self._remember()

    def adopt(self, row: int, other: Decoding) -> None:
        """Give a row, which another one had, the memories of the only row of another generation."""
        self.forget(row)
        for growing in self._growing.values():
            growing.clear(row)
        for site, memory in other.memories.items():
            self._growing.setdefault(site, Growing(memory, self.n_rows)).append(memory, [row])
        self._remember()

    def _remember(self) -> None:
        """Show the memories of which some row has entries."""
        self._growing = {site: growing for site, growing in self._growing.items() if any(growing.lengths)}
        self.memories = {site: growing.memory() for site, growing in self._growing.items()}
        self.prepared = Prepared()

    def forget(self, row: int) -> None:
        """Drop the unfinished segments of a row that goes no further."""
        for pending in self.pending.values():
            pending.drop(row)

    def branch(self, tower: str, cache: Any, n_rows: int, index: Tensor | None) -> Decoding:
        """The state from which hypotheses go on with one tower; its memories are read only.

        Args:
            tower: the only one that will advance.
            cache: its cache, reordered for the hypotheses.
            n_rows: how many hypotheses there are.
            index: (N,) the row of each one's memory; None where every row keeps its own.
        """
        memories = self.memories
        if index is not None:
            memories = {
                site: Memory(memory.order[index], tuple(tensor[index] for tensor in memory.tensors))
                for site, memory in memories.items()
                if site.target == tower
            }
        prepared = self.prepared if index is None else Prepared()
        n_slots = dict(self.n_slots)
        return Decoding(n_rows, caches={tower: cache}, n_slots=n_slots, memories=memories, prepared=prepared)

    def write_later(self, site: LinkSite, states: Tensor, tokens: TowerBatch) -> None:
        """Keep (B, T, D) states of the rows that advance until their segments are complete."""
        self.pending.setdefault(site, Pending()).add(states, tokens, self.rows)
