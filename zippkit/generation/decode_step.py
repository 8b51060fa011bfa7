"""One autoregressive step: feed a token of each modality of a turn, and choose the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.generation.length_limits import Turn
from zippkit.generation.new_tokens import next_tokens
from zippkit.generation.row import Piece, Row
from zippkit.generation.row_batch import RowBatch
from zippkit.generation.sampling import choose
from zippkit.generation.turn_changes import finish_turns
from zippkit.model.next_modality import PREFIX


def decode_step(batch: RowBatch, turn: Turn, rows: Sequence[Row]) -> list[Piece]:
    """Advance some rows that are at one turn by a step, and finish the turn in those that reach its end."""
    choosing = [row for row in rows if not row.ending]
    fed = {row.number: row.ahead.pop(0) for row in rows}
    predicting = [row for row in rows if row.choices_left and row.ending and not row.ahead]
    plan = batch.step_plan(turn, rows, bool(choosing), bool(predicting))
    logits = batch.run(plan, _inputs(batch, turn, rows, fed), rows)
    for row in rows:
        row.order += len(turn)
        row.step += 1
    pieces = _choose_all(batch, turn, choosing, logits) if choosing else []
    predicted = {row.number: logits[PREFIX + batch.request.towers([turn])[0]][row.number, -1] for row in predicting}
    finish_turns(batch, [row for row in rows if not row.ahead], predicted)
    return pieces


def _inputs(batch: RowBatch, turn: Turn, rows: Sequence[Row], fed: Mapping[int, list[int]]) -> dict[str, TowerBatch]:
    n_together, found = len(turn), {}
    for k, tower in enumerate(batch.request.towers([turn])):
        columns = {row.number: next_tokens(row, [fed[row.number][k]], k, n_together) for row in rows}
        found[tower] = batch.tower_batch(tower, columns, order_offset=n_together - 1)
    return found


def _choose_all(batch: RowBatch, turn: Turn, rows: Sequence[Row], logits: Mapping[str, Tensor]) -> list[Piece]:
    """Choose the next token of each modality of a turn, and let the rows take them."""
    chosen = [_choose(batch, name, k, rows, logits) for k, name in enumerate(turn)]
    pieces = [piece for row in rows for piece in row.take([tokens[row.number] for tokens in chosen])]
    for row in rows:
        row.skip_unread()
    return pieces


def _choose(
    batch: RowBatch, modality: str, number: int, rows: Sequence[Row], logits: Mapping[str, Tensor]
) -> list[int]:
    """The next token of every row, in the tower's ids; arbitrary in rows that are not at this turn."""
    request = batch.request
    kind, sampling = request.modalities[modality], request.sampling[modality]
    of_tower = logits[kind.tower][:, -1]
    if request.watch is not None:
        places = {row.index: (row.segment + number, row.step) for row in rows}
        request.watch(modality, places, batch.by_index(of_tower, rows))
    draws = _draws(batch, rows) if sampling.temperature > 0 else None
    own, seen = batch.own_logits(modality, of_tower)
    return [token + kind.first_id for token in choose(own, sampling, seen, draws).tolist()]


def _draws(batch: RowBatch, rows: Sequence[Row]) -> Tensor:
    """(B,) a number of [0, 1) from each of these rows' own generators; 0 in the others."""
    drawn = [0.0] * len(batch.rows)
    for row in rows:
        drawn[row.number] = float(torch.rand((), generator=row.random, dtype=torch.float64))
    return torch.tensor(drawn, device=batch.request.device, dtype=torch.float64)
