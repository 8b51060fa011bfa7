"""The new tokens of one step as tower batches: ids, orders and position ids, padded where rows rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from zippkit.batch.batch import IGNORE, TowerBatch
from zippkit.generation.request import Request
from zippkit.generation.row import Row

Columns: TypeAlias = tuple[list[int], list[int], list[int], list[int]]
"""One row's new tokens of a tower: ids, order in the whole sequence, number of their segment, offset in it."""
EMPTY: Columns = ([], [], [], [])
PADDING = (0, -1, -1, 0)


def next_tokens(row: Row, tokens: Sequence[int], number: int = 0, n_together: int = 1) -> Columns:
    """The columns of the next tokens of a row's present turn.

    Args:
        row: the row.
        tokens: what comes next, in the tower's ids.
        number: which of the turn's modalities it is.
        n_together: how many modalities advance together.
    """
    steps = range(len(tokens))
    return (
        list(tokens),
        [row.order + n_together * k for k in steps],
        [row.segment + number] * len(tokens),
        [row.step + k for k in steps],
    )


def inserted_places(row: Row, places: Sequence[tuple[int, int]], token: int) -> Columns:
    """The columns of places that links insert.

    Args:
        row: the row.
        places: for each place, the number of the segment that it stands for, and its offset there.
        token: id that fills them.
    """
    return (
        [token] * len(places),
        [row.order] * len(places),
        [number for number, _ in places],
        [offset for _, offset in places],
    )


def tower_batch(
    request: Request,
    tower: str,
    rows: Sequence[Row],
    columns: Mapping[int, Columns],
    capacity: int,
    order_offset: int = 0,
    inserted: bool = False,
) -> TowerBatch:
    """(B, T) new tokens of a tower, right-padded in rows with fewer.

    Rows without columns rest: they see nothing and are seen by nobody, and what they write into their caches is
    written over.

    Args:
        request: the generation's.
        tower: which tower.
        rows: all rows of the batch.
        columns: new tokens, by the number of their row.
        capacity: slots of the tower's KV cache.
        order_offset: offset between a token's query order and its key order.
        inserted: whether these are places that links insert.
    """
    n_new = max(len(ids) for ids, *_ in columns.values())
    table: list[list[list[int]]] = []
    for row in rows:
        # What is written into a slot by padding, or by a row that rests, is written over by the token that is due
        # there; the next slot of a complete row may be past the last one.
        slots = [min(row.positions[tower] + k, capacity - 1) for k in range(n_new)]
        own = columns.get(row.number, EMPTY)
        padded = [[*c, *[fill] * (n_new - len(c))] for c, fill in zip(own, PADDING, strict=True)]
        table.append([*padded, slots])
    ids, visible, segments, offsets, positions = torch.tensor(table, device=request.device).unbind(dim=1)
    order = torch.where(visible >= 0, visible + order_offset, -1) if order_offset else visible
    return TowerBatch(
        tokens=ids,
        order=order,
        start=torch.zeros_like(ids),
        visible=visible,
        segment=segments,
        offset=offsets,
        positions=positions,
        position_ids=order.clamp(min=0) if tower in request.graph.layout.shared else positions,
        inserted=torch.full_like(ids, inserted, dtype=torch.bool),
        targets=torch.full_like(ids, IGNORE),
    )
