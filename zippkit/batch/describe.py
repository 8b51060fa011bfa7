"""The staircases of a batch, from its columns alone: what each token of a tower sees of its own, and of another tower.

Columns are those of a padded batch: real tokens first, whose orders never fall.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.batch.staircase import Staircase, runs

Column = NDArray[np.int64]


def describe_cross(target: TowerBatch, source: TowerBatch) -> Staircase:
    """Describe a link's mask as a staircase.

    Each segment of the target sees the source's tokens of its document before it; where the two towers advance
    together, each of its tokens sees one more than the one before it.
    """
    there = _array(target.order) >= 0
    row, query = there.nonzero()
    order, start, segment = (_array(column)[there] for column in (target.order, target.start, target.segment))
    keys = _Keys(source)
    starts, stops = runs(row, segment, start)
    rising = keys.before(row[stops - 1], order[stops - 1]) > keys.before(row[starts], order[starts])
    if rising.any():
        uneven = rising & ~_one_more_each(keys.before(row, order), starts)
        rising_tokens, uneven_tokens = (np.repeat(which, stops - starts) for which in (rising & ~uneven, uneven))
        starts, stops = runs(row, segment, start, np.cumsum(uneven_tokens))
        rising = rising_tokens[starts]
    row_of, first = row[starts], query[starts]
    seen = keys.before(row_of, start[starts]), keys.before(row_of, order[starts])
    columns = (row_of, first, first + stops - starts, *seen, rising)
    n_rows, n_queries = there.shape
    return Staircase(np.stack(columns, axis=1).astype(np.int32), n_rows, n_queries, source.order.shape[1])


def describe_self(tokens: TowerBatch, causal: bool) -> Staircase:
    """The mask of a tower's own tokens: those before in its document, or a whole segment if it is not causal."""
    there = _array(tokens.order) >= 0
    row, query = there.nonzero()
    starts, stops = runs(row, _array(tokens.start if causal else tokens.segment)[there])
    first, stop = query[starts], query[starts] + stops - starts
    columns = (row[starts], first, stop, first, first + 1 if causal else stop, np.full_like(first, causal))
    return Staircase(np.stack(columns, axis=1).astype(np.int32), len(there), there.shape[1], there.shape[1])


class _Keys:
    """Tokens of a source, to be counted by the order from which they are visible."""

    def __init__(self, source: TowerBatch) -> None:
        visible = _array(source.visible)
        there = visible >= 0
        counts = there.sum(axis=1)
        self._first = np.cumsum(counts) - counts
        self._span = int(visible.max(initial=0)) + 2
        self._sorted = (visible + self._span * np.arange(len(visible))[:, None])[there]

    def before(self, row: Column, order: Column) -> Column:
        """How many keys of a row are visible before an order."""
        within = np.minimum(order, self._span - 1) + self._span * row
        n_seen: Column = np.searchsorted(self._sorted, within) - self._first[row]
        return n_seen


def _one_more_each(n_seen: Column, starts: Column) -> NDArray[np.bool_]:
    """For each run of tokens, whether each sees one key more than the one before it."""
    one_more = np.diff(n_seen, prepend=-1) == 1
    one_more[starts] = True
    return np.logical_and.reduceat(one_more, starts)


def _array(column: Tensor) -> Column:
    return np.asarray(column.cpu(), dtype=np.int64)
