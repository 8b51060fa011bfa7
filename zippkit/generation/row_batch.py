"""Rows that the model runs side by side, with their KV caches and memories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.generation.length_limits import Turn
from zippkit.generation.new_tokens import Columns, tower_batch
from zippkit.generation.request import Request
from zippkit.generation.row import Row
from zippkit.model.decoding_state import Decoding
from zippkit.model.kv_cache import RowCache, capacity_for
from zippkit.model.next_modality import PREFIX
from zippkit.plan.graph import LinkSite
from zippkit.plan.plan import Plan, Wanted


class RowBatch:
    """All rows of a generation, or all hypotheses of a beam search."""

    def __init__(
        self,
        request: Request,
        rows: Sequence[Row],
        multimodal: Tensor | bool,
        decoding: Decoding | None = None,
        capacity: dict[str, int] | None = None,
        most: dict[str, int] | None = None,
    ) -> None:
        self.request, self.rows, self.multimodal = request, list(rows), multimodal
        self.decoding = decoding or Decoding(len(rows))
        self.capacity = {} if capacity is None else capacity
        """Slots of each tower's KV cache."""
        self.most = {} if most is None else most
        """Slots that it can come to need."""
        self._plans: dict[object, Plan] = {}

    def tower_batch(
        self, tower: str, columns: Mapping[int, Columns], order_offset: int = 0, inserted: bool = False
    ) -> TowerBatch:
        """(B, T) new tokens of a tower; see `zippkit.generation.new_tokens.tower_batch`."""
        n_new = max(len(ids) for ids, *_ in columns.values())
        self.make_room(tower, max(row.positions[tower] for row in self.rows if row.turns) + n_new)
        return tower_batch(self.request, tower, self.rows, columns, self.capacity[tower], order_offset, inserted)

    def allocate(self, tower: str, n_slots: int, most: int) -> None:
        """Make a tower's KV cache.

        Args:
            tower: which tower.
            n_slots: slots that are written at once.
            most: slots that it can come to need.
        """
        new_cache, n_rows = self.request.model.tower(tower).new_cache, len(self.rows)
        self.most[tower], self.capacity[tower] = most, min(most, capacity_for(n_slots))
        cache = new_cache(n_rows, self.capacity[tower])
        if self.capacity[tower] < most and not isinstance(cache, RowCache):
            self.capacity[tower], cache = most, new_cache(n_rows, most)
        self.decoding.caches[tower], self.decoding.n_slots[tower] = cache, n_slots

    def make_room(self, tower: str, n_slots: int) -> None:
        """Let a tower's KV cache grow to so many slots at least, or to all that it can come to need."""
        wanted, cache = min(self.most[tower], n_slots), self.decoding.caches[tower]
        if wanted > self.capacity[tower]:
            self.capacity[tower] = min(self.most[tower], capacity_for(wanted))
            cache.grow(len(self.rows), self.capacity[tower])

    def run(
        self,
        plan: Plan,
        inputs: Mapping[str, TowerBatch],
        rows: Sequence[Row],
        counts: Mapping[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Run new tokens of some rows.

        Args:
            plan: operations to run.
            inputs: by tower, the new tokens.
            rows: the rows that advance.
            counts: by row number, how many of its tokens are no padding; None for all.

        Returns:
            Logits (B, T, V) by tower, and what parts give.
        """
        for tower, new in inputs.items():
            for row in rows:
                row.positions[tower] += counts[row.number] if counts else new.tokens.shape[1]
            longest = max(row.positions[tower] for row in self.rows if row.turns)
            # A row in which the tower advances no more may have more tokens of it than there are slots.
            self.decoding.n_slots[tower] = min(longest, self.capacity[tower])
        self.decoding.rows = [row.number for row in rows]
        return self.request.run(plan, inputs, self.multimodal, self.decoding)

    def own_logits(
        self, modality: str, logits: Tensor, rows: Sequence[Row] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Cut a modality's own ids out of its tower's logits.

        Args:
            modality: which one.
            logits: (B, V) of its tower.
            rows: whose logits they are; all of the batch, if left out.

        Returns:
            (B, V) logits, and (B, V) bool which ids each row has seen, where there is a repetition penalty.
        """
        kind = self.request.modalities[modality]
        last = None if kind.vocab_size is None else kind.first_id + kind.vocab_size
        own = logits[:, kind.first_id : last]
        if self.request.sampling[modality].repetition_penalty == 1:
            return own, None
        return own, torch.stack([row.seen_ids(modality, own.shape[1]) for row in rows or self.rows])

    def given(self, towers: Sequence[str]) -> frozenset[LinkSite]:
        """The sites that these towers read, of those whose memory is there."""
        return frozenset(site for site in self.decoding.memories if site.target in towers)

    def step_plan(self, turn: Turn, rows: Sequence[Row], with_heads: bool, predicts_next: bool) -> Plan:
        """The operations of a step of some rows at one turn.

        Args:
            turn: the modalities that advance.
            rows: the rows that advance.
            with_heads: whether the towers' logits are wanted.
            predicts_next: whether the next modality's logits are wanted.
        """
        towers = self.request.towers([turn])
        later = frozenset(name for row in rows for name in row.later())
        writes = frozenset(s for s in self.request.graph.sites if s.source in towers and s.target in later)
        together = frozenset((one, other) for one in towers for other in towers if one != other)
        given = frozenset(site for site in self.given(towers) if (site.target, site.source) not in together)
        heads, layers = (
            (frozenset(towers), frozenset[str]()) if with_heads else (frozenset[str](), later.intersection(towers))
        )
        parts = frozenset({PREFIX + towers[0]} if predicts_next else set[str]())
        key = (heads, together, writes, given, layers, parts)
        if key not in self._plans:
            self._plans[key] = self.request.zipped.plan.prune(Wanted(*key))
        return self._plans[key]

    def commit(self, rows: Sequence[Row]) -> None:
        """Let towers that advance in some rows from now on read the segments that are finished there."""
        self.request.model.commit(self.decoding, [row.number for row in rows])

    @property
    def moves(self) -> bool:
        """Whether its rows can be handed on."""
        return all(isinstance(cache, RowCache) for cache in self.decoding.caches.values())

    def compact(self) -> None:
        """Drop rows that have ended, once no more than half of all go on."""
        live = [row.number for row in self.rows if row.turns]
        if self.moves and live and 2 * len(live) <= len(self.rows):
            index = torch.tensor(live, device=self.request.device)
            caches = self.decoding.caches
            caches.update({tower: cache.picked(index) for tower, cache in caches.items()})
            self._renumber([self.rows[number] for number in live], live)

    def adopt(self, other: RowBatch) -> None:
        """Take over another batch's only row, in the place of one that has ended or in a new one."""
        (row,), free = other.rows, [row.number for row in self.rows if not row.turns]
        if not free:
            n_rows = len(self.rows)
            free = [n_rows]
            for tower, cache in self.decoding.caches.items():
                cache.grow(2 * n_rows, self.capacity[tower])
            ended = [replace(row, turns=[], number=number) for number in range(n_rows, 2 * n_rows)]
            self._renumber([*self.rows, *ended], [*range(n_rows), *[-1] * n_rows])
        self._declare(free[0], other.multimodal)
        self.rows[free[0]], row.number = row, free[0]
        for tower, cache in other.decoding.caches.items():
            n_slots, most = other.decoding.n_slots[tower], other.most[tower]
            if tower not in self.decoding.caches:
                self.allocate(tower, n_slots, most)
            self.most[tower] = max(self.most[tower], most)
            self.make_room(tower, n_slots)
            self.decoding.caches[tower].put([row.number], cache, n_slots)
            self.decoding.reserve(tower, n_slots)
        self.decoding.adopt(row.number, other.decoding)

    def _renumber(self, rows: list[Row], came_from: Sequence[int]) -> None:
        """Have other rows, of which each was there under another number, or -1."""
        self.decoding.select(came_from)
        if isinstance(self.multimodal, Tensor):
            self.multimodal = self.multimodal[torch.tensor(came_from, device=self.request.device)]
        self.rows = rows
        for number, row in enumerate(rows):
            row.number = number

    def _declare(self, row: int, multimodal: Tensor | bool) -> None:
        """Declare a row as the only one of another batch is."""
        declared = bool(multimodal)
        if self.multimodal is not declared:
            if isinstance(self.multimodal, bool):
                self.multimodal = torch.full((len(self.rows),), self.multimodal, device=self.request.device)
            self.multimodal = self.multimodal.clone()
            self.multimodal[row] = declared

    def by_index(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """(N, V) logits of rows by their number in the generation, from (B, V) by their place in the batch."""
        if all(row.index == row.number for row in rows):
            return logits
        found = logits.new_zeros(1 + max(row.index for row in rows), logits.shape[1])
        found[[row.index for row in rows]] = logits[[row.number for row in rows]]
        return found

    def branch(self, tower: str, parents: Sequence[int], same_rows: bool) -> RowBatch:
        """Some of the rows, each as often as it is named, as rows of their own in which one tower advances.

        Args:
            tower: the only one that will advance.
            parents: numbers of the rows.
            same_rows: whether each new row descends from the same row of the prompts as the one now in its place.
        """
        index = torch.tensor(parents, device=self.request.device)
        cache = self.request.model.tower(tower).reorder_cache(self.decoding.caches[tower], index)
        decoding = self.decoding.branch(tower, cache, len(parents), None if same_rows else index)
        multimodal = self.multimodal
        if isinstance(multimodal, Tensor) and not same_rows:
            multimodal = multimodal[index]
        rows = [self.rows[parent].branch(number) for number, parent in enumerate(parents)]
        return RowBatch(self.request, rows, multimodal, decoding, dict(self.capacity), self.most)
