"""Where one turn ends and the next begins: segments become readable, and inserted places run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from zippkit.errors import DataError
from zippkit.generation.new_tokens import inserted_places
from zippkit.generation.row import Row
from zippkit.generation.row_batch import RowBatch
from zippkit.plan.plan import Wanted


def finish_turns(batch: RowBatch, rows: Sequence[Row], predicted: Mapping[int, Tensor]) -> None:
    """Complete the present turn of some rows, and begin the next.

    Args:
        batch: all rows.
        rows: those whose segments are complete.
        predicted: by row number, (N + 1,) logits of the next modality, where the model chooses.
    """
    if not rows:
        return
    batch.commit(rows)
    for row in rows:
        row.finish()
        if row.number in predicted:
            row.follow(predicted[row.number])
    begin_turns(batch, rows)


def begin_turns(batch: RowBatch, rows: Sequence[Row]) -> None:
    """Start the next turn of each row that has one, and run at once what links insert before it."""
    waiting: dict[str, list[Row]] = {}
    for row in rows:
        if row.turns:
            row.begin()
            for tower in batch.request.towers(row.turns[:1]):
                if row.waiting[tower]:
                    waiting.setdefault(tower, []).append(row)
    for tower, alike in waiting.items():
        _run_inserts(batch, tower, alike)


def _run_inserts(batch: RowBatch, tower: str, rows: Sequence[Row]) -> None:
    """Run the places that complete segments take before a segment of this tower, which is about to begin."""
    graph = batch.request.graph
    frame, places = graph.towers[tower].frame, {}
    for row in rows:
        _check_room(tower, row)
        places[row.number] = [(number, k) for number, n in row.waiting.pop(tower) for k in range(n)]
    token = frame.end if frame else 0
    columns = {row.number: inserted_places(row, places[row.number], token) for row in rows}
    read = {name for row in rows for name in batch.request.towers(row.turns[:1]) + row.later()}
    writes = {s for s in graph.sites if s.source == tower and s.target in read}
    plan = batch.request.zipped.plan.prune(Wanted(writes=writes, given=batch.given([tower]), layers={tower}))
    counts = {number: len(each) for number, each in places.items()}
    batch.run(plan, {tower: batch.tower_batch(tower, columns, inserted=True)}, rows, counts)
    batch.commit(rows)


def _check_room(tower: str, row: Row) -> None:
    limit = row.request.graph.towers[tower].max_len
    needed = row.request.limits.used(tower, row) + 2 * row.request.towers(row.turns).count(tower)
    if limit is not None and needed > limit:
        raise DataError(
            f"{tower}: {needed} tokens, with the places that links insert and the frames of what follows; the "
            f"tower takes at most {limit}"
        )
