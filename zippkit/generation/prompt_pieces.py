"""A prompt that is run piece by piece, so that rows which are being generated meanwhile wait for no more than a piece.

A piece is several whole segments, or some tokens of a long one; together they compute what the whole prompt gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import NamedTuple

import torch

from zippkit.batch.batch import Batch, Features, TowerBatch
from zippkit.generation.prefill import queue_inserts, set_positions, slots_needed
from zippkit.generation.row_batch import RowBatch
from zippkit.generation.turn_changes import begin_turns
from zippkit.model.next_modality import PREFIX
from zippkit.model.tower import Tower
from zippkit.plan.plan import Wanted


class Stretch(NamedTuple):
    """A run of orders in the whole sequence."""

    first: int
    stop: int
    ends: bool
    """Its last segment is complete."""


class PromptPieces:
    """The prompt of the only row of a batch."""

    def __init__(self, batch: RowBatch, longest: int) -> None:
        """Lay the prompt out.

        Args:
            batch: of one row, which has not begun.
            longest: tokens of a piece; a segment that cannot be taken apart may have more.

        Raises:
            DataError: a prompt that a tower cannot take, or that leaves it no room to go on.
        """
        (row,) = batch.rows
        self.batch, request = batch, batch.request
        self._advancing = row.to_come(row.turns)
        self._given: Batch | None = None
        if row.prompt and self._advancing:
            self._given = request.zipped.collate([row.prompt], multimodal=bool(batch.multimodal)).to(request.device)
        inputs = self._inputs
        queue_inserts(batch, inputs)
        set_positions(batch.rows, inputs)
        self._slots = {tower: slots_needed(row, tower, self._advancing) for tower in self._caching()}
        self._pieces = deque(cut(list(self._units()), longest))

    @property
    def _inputs(self) -> dict[str, TowerBatch]:
        return self._given.towers if self._given else {}

    def _caching(self) -> list[str]:
        """Towers that keep what they compute: those that advance later, and those whose segments are taken apart."""
        towers = self.batch.request.graph.towers
        return list(dict.fromkeys([*self._advancing, *(name for name in self._inputs if towers[name].causal)]))

    def _units(self) -> Iterator[tuple[int, int, bool]]:
        """First and last order of what is complete at once: a segment, or two that advance together."""
        request, (row,) = self.batch.request, self.batch.rows
        clocked = {name for clock in request.graph.layout.clocks for name in clock}
        found: list[tuple[int, int, bool]] = []
        for number, segment in enumerate(row.prompt if self._inputs else ()):
            tower = request.modalities[segment.tower].tower
            tokens, config = self._inputs[tower], request.graph.towers[tower]
            order = tokens.order[(tokens.segment == number) & ~tokens.inserted]
            apart = config.causal and not config.continuous and tower not in clocked and _caches(self.batch, tower)
            unit = int(order.min()), int(order.max()), apart
            if found and unit[0] <= found[-1][1]:
                unit = found[-1][0], max(unit[1], found.pop()[1]), False
            found.append(unit)
        yield from found

    @property
    def done(self) -> bool:
        """Whether all of the prompt is run."""
        return not self._pieces

    @torch.inference_mode()
    def run(self) -> int:
        """Run the next piece, and behind the last one begin the row's first turn; how many tokens there were."""
        batch, (row,) = self.batch, self.batch.rows
        for tower in self._slots.keys() - batch.decoding.caches.keys():
            if tower in self._advancing or _caches(batch, tower):
                width = self._inputs[tower].tokens.shape[1] if tower in self._inputs else 0
                batch.allocate(tower, width, max(width, self._slots[tower]))
        piece = self._pieces.popleft() if self._pieces else Stretch(0, 0, False)
        if piece.stop:
            self._run(piece)
        if self.done:
            for tower in batch.decoding.caches.keys() - set(self._advancing):
                del batch.decoding.caches[tower]
            begin_turns(batch, [row])
        return piece.stop - piece.first

    def _run(self, piece: Stretch) -> None:
        batch, (row,) = self.batch, self.batch.rows
        request, graph = batch.request, batch.request.graph
        inputs = {name: part for name, tokens in self._inputs.items() if (part := _part(tokens, piece)) is not None}
        later = {name for name, tokens in self._inputs.items() if bool((tokens.order >= piece.stop).any())}
        readers = {*self._advancing, *later, *inputs}
        sees = {
            (one, other) for one, other in permutations(inputs, 2) if piece.ends and _sees(inputs[one], inputs[other])
        }
        last = request.modalities[row.prompt[-1].tower].tower
        predicts = self.done and bool(request.choices)
        given = {site for site in batch.given(list(inputs)) if (site.target, site.source) not in sees}
        plan = request.zipped.plan.prune(
            Wanted(
                sees=frozenset(sees),
                given=frozenset(given),
                writes=frozenset(s for s in graph.sites if s.source in inputs and s.target in readers),
                layers=frozenset(set(self._advancing) & inputs.keys()),
                parts=frozenset({PREFIX + last} if predicts else set[str]()),
            )
        )
        for name, tokens in inputs.items():
            if name in batch.decoding.caches:
                batch.decoding.n_slots[name] = int(tokens.positions.max()) + 1
        batch.decoding.rows = [0]
        found = request.model.run(plan, inputs, batch.multimodal, batch.decoding)
        if piece.ends:
            batch.commit([row])
        if predicts:
            row.follow(found[PREFIX + last][0, -1])


def cut(units: Sequence[tuple[int, int, bool]], longest: int) -> Iterator[Stretch]:
    """Cut a prompt into pieces.

    Args:
        units: first and last order of each, and whether it can be taken apart.
        longest: tokens of a piece, where that can be.
    """
    begin: int | None = None
    for first, last, apart in units:
        if begin is not None and last + 1 - begin > longest:
            yield Stretch(begin, first, True)
            begin = None
        if apart and last + 1 - first > longest:
            for at in range(first, last + 1, longest):
                yield Stretch(at, min(at + longest, last + 1), at + longest > last)
        elif begin is None:
            begin = first
    if begin is not None:
        yield Stretch(begin, units[-1][1] + 1, True)


def _caches(batch: RowBatch, tower: str) -> bool:
    return type(batch.request.model.tower(tower)).new_cache is not Tower.new_cache


def _part(tokens: TowerBatch, piece: Stretch) -> TowerBatch | None:
    """The tokens of a piece; None if there are none."""
    there = ((tokens.order[0] >= piece.first) & (tokens.order[0] < piece.stop)).nonzero()[:, 0].tolist()
    if not there:
        return None
    columns = slice(there[0], there[-1] + 1)
    part = tokens.part(columns)
    if tokens.features is None:
        return part
    entry = tokens.features.entry[:, columns]
    entries = slice(int(entry.min()), int(entry.max()) + 1)
    lengths = tokens.features.lengths[entries]
    return replace(part, features=Features(tokens.features.values[entries], lengths, entry - entries.start))


def _sees(target: TowerBatch, source: TowerBatch) -> bool:
    """Whether some token of a target comes after some token of a source."""
    return int(target.order.max()) > int(source.visible.min())
