"""Beam search within the rows themselves: hypotheses stand side by side behind the prompt that they share.

Each step puts the next token of every hypothesis into slots of the row's own cache, and a table says which of them are
ancestors of which (tree attention, arXiv 2305.09781). The prompt and the links' memories are read once for all of them,
and no cache is copied::

    prompt      | step 1  | step 2    slots of a row with two beams
    begin, ...  | a    b  | c    d    c and d both go on from a; nobody sees b any more

Once most of what stands behind the prompt is nobody's ancestor, the rest moves together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from zippkit.batch.batch import Branches, TowerBatch
from zippkit.generation.new_tokens import PADDING, Columns
from zippkit.generation.row import Row
from zippkit.generation.row_batch import RowBatch
from zippkit.generation.sampling import penalised
from zippkit.model import kv_cache
from zippkit.plan.plan import Wanted


class Ancestors:
    """Which slots each hypothesis of each row sees; W columns of hypotheses a row."""

    def __init__(self, first: Sequence[int], width: int, device: torch.device) -> None:
        self.first = list(first)
        """Of each row, the slot behind its prompt."""
        self.n_used = [0] * len(first)
        """Slots behind the prompt that are in use, by row."""
        behind = torch.tensor(self.first, device=device)[:, None]
        slots = torch.arange(max(first), device=device).expand(len(first), -1)
        self.positions = slots
        """(B, S) position of the token in each slot."""
        self.sees = (slots < behind)[:, None].expand(-1, width, -1)
        """(B, W, S) bool."""
        self._crowded = [kv_cache.BLOCK] * len(first)

    def follow(self, parents: Tensor) -> None:
        """Let the hypothesis in each column see what its (B, W) parent, a column of the step before, saw."""
        self.sees = self.sees.gather(1, parents[:, :, None].expand(-1, -1, self.sees.shape[2]))

    def add(self, slots: Tensor, positions: Tensor) -> None:
        """Let each hypothesis see its own token, in (B, W) slots."""
        more = int(slots.max()) + 1 - self.sees.shape[2]
        self.sees, self.positions = (pad(table, (0, max(more, 0))) for table in (self.sees, self.positions))
        self.sees = self.sees.scatter(2, slots[:, :, None], True)
        self.positions = self.positions.scatter(1, slots, positions)

    def crowded(self, row: int) -> Tensor | None:
        """(N,) slots behind a row's prompt that are somebody's ancestors, if it may be few of those in use."""
        if self.n_used[row] < self._crowded[row]:
            return None
        first = self.first[row]
        alive: Tensor = self.sees[row, :, first:].any(dim=0).nonzero()[:, 0] + first
        self._crowded[row] = max(kv_cache.BLOCK, 2 * len(alive))
        return alive if 2 * len(alive) <= self.n_used[row] else None

    def move(self, row: int, alive: Tensor) -> None:
        """The slots that are ``alive`` now stand right behind the row's prompt."""
        first, last = self.first[row], self.first[row] + len(alive)
        self.sees, self.positions = self.sees.clone(), self.positions.clone()
        for table in (self.sees[row], self.positions[row]):
            kept = table[..., alive]
            table[..., first:] = 0
            table[..., first:last] = kept
        self.n_used[row] = len(alive)


class BeamTree:
    """The hypotheses of one beam search, several in each row."""

    def __init__(self, batch: RowBatch, modality: str, rows: Sequence[Row]) -> None:
        self._batch, self._modality, self._roots = batch, modality, rows
        self._kind = batch.request.modalities[modality]
        self._tower = tower = self._kind.tower
        self._plan = batch.request.zipped.plan.prune(Wanted(heads={tower}, given=batch.given([tower])))
        self._width, self._n_steps = batch.request.sampling[modality].beams, 0
        self._beams = [(0, row) for row in rows]
        """Of each hypothesis of the step before, its column in its row, and the ids that it has seen."""
        first = [row.positions[tower] for row in batch.rows]
        self._ancestors = Ancestors(first, self._width, batch.request.device)

    def step(self, parents: list[int], tokens: list[int], owners: list[int]) -> Tensor:
        """Log-probabilities (N, V) after one token more; see `zippkit.generation.beam_search.Step`."""
        columns = [number - owners.index(owner) for number, owner in enumerate(owners)]
        rows = [self._roots[owner].number for owner in owners]
        came_from = [[0] * self._width for _ in self._batch.rows]
        for parent, row, column in zip(parents, rows, columns, strict=True):
            came_from[row][column] = self._beams[parent][0]
        self._ancestors.follow(torch.tensor(came_from, device=self._batch.request.device))
        self._beams = [
            (column, self._beams[parent][1].branch(row))
            for parent, row, column in zip(parents, rows, columns, strict=True)
        ]
        for (_, hypothesis), token in zip(self._beams, tokens, strict=True):
            hypothesis.mark_seen(self._modality, token)
        ids: dict[int, list[int]] = {}
        for row, token in zip(rows, tokens, strict=True):
            ids.setdefault(row, []).append(token + self._kind.first_id)
        logits = self._run(ids)[rows, columns]
        own, seen = self._batch.own_logits(self._modality, logits, [hypothesis for _, hypothesis in self._beams])
        # As transformers does: a penalised log-probability is not made a probability again.
        return penalised(own.log_softmax(dim=-1), seen, self._batch.request.sampling[self._modality].repetition_penalty)

    def _run(self, ids: Mapping[int, list[int]]) -> Tensor:
        """Logits (B, W, V) behind the next tokens of some rows, by row."""
        batch, tower, ancestors = self._batch, self._tower, self._ancestors
        for row in ids:
            alive = ancestors.crowded(row)
            if alive is not None:
                batch.decoding.caches[tower].move(row, alive, ancestors.first[row])
                ancestors.move(row, alive)
        most = max(ancestors.first[row] + ancestors.n_used[row] for row in ids) + self._width
        batch.most[tower] = max(batch.most[tower], most)
        batch.make_room(tower, most)
        new = self._placed(batch.tower_batch(tower, {row: self._columns(row, each) for row, each in ids.items()}), ids)
        rows = [batch.rows[row] for row in ids]
        self._n_steps += 1
        return batch.run(self._plan, {tower: new}, rows, counts=dict.fromkeys(ids, 0))[tower]

    def _columns(self, row: int, ids: list[int]) -> Columns:
        """The hypotheses' next tokens: all at the same place of the row, and padding up to W."""
        root, n = self._batch.rows[row], self._n_steps
        place = (root.order + n, root.segment, root.step + n)
        n_padded = self._width - len(ids)
        columns = [ids, *([each] * len(ids) for each in place)]
        padded = ([*column, *[fill] * n_padded] for column, fill in zip(columns, PADDING, strict=True))
        return cast("Columns", tuple(padded))

    def _placed(self, new: TowerBatch, ids: Mapping[int, list[int]]) -> TowerBatch:
        """Tell the new tokens' slots, and what they see."""
        ancestors, positions, slots = self._ancestors, new.positions.tolist(), new.positions.tolist()
        for row in ids:
            first, behind = ancestors.first[row], ancestors.first[row] + ancestors.n_used[row]
            slots[row] = list(range(behind, behind + self._width))
            positions[row] = [first + self._n_steps] * self._width
            ancestors.n_used[row] += self._width
        at, where = (torch.tensor(each, device=new.tokens.device) for each in (positions, slots))
        ancestors.add(where, at)
        shared = self._tower in self._batch.request.graph.layout.shared
        return replace(
            new,
            positions=at,
            position_ids=new.position_ids if shared else at,
            branches=Branches(where, ancestors.sees, ancestors.positions),
        )
