"""Which documents share a row: as few rows as a limit allows, and as alike in length as they get."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def share_rows(lengths: Ints, longest: int) -> Ints:
    """Deal documents out to rows, the longest first, each to the row that it fills least (Graham's LPT rule).

    Rows are padded to the longest of them, so rows of one length waste least. The result is a function of the lengths
    alone.

    Args:
        lengths: (D, N) tokens of each document in each of N towers.
        longest: most tokens of any tower in a row; a longer document makes rows as long as itself.

    Returns:
        (D,) the row of each document; rows are numbered by their first document.
    """
    if not len(lengths):
        return np.zeros(0, dtype=np.int64)
    longest = max(longest, int(lengths.max()))
    n_rows = max(1, -(-int(lengths.sum(axis=0).max()) // longest))
    while True:
        rows, loads = _dealt(lengths, n_rows)
        if loads.max() <= longest or n_rows == len(lengths):
            return _renumbered(rows)
        n_rows += 1


def share_rows_alike(lengths: Ints, longest: int, kinds: Sequence[bool]) -> Ints:
    """As `share_rows`; only documents of one kind share a row."""
    rows = np.zeros(len(lengths), dtype=np.int64)
    first = 0
    for kind in dict.fromkeys(kinds):
        of_kind = np.array([each == kind for each in kinds])
        rows[of_kind] = first + share_rows(lengths[of_kind], longest)
        first = int(rows[of_kind].max()) + 1
    return _renumbered(rows)


def _dealt(lengths: Ints, n_rows: int) -> tuple[Ints, Ints]:
    """The row of each document, and (n_rows, N) the tokens of each row."""
    rows, loads = np.zeros(len(lengths), dtype=np.int64), np.zeros((n_rows, lengths.shape[1]), dtype=np.int64)
    share = 1 / lengths.sum(axis=0).clip(min=1)
    for document in np.argsort(-(lengths * share).max(axis=1), kind="stable"):
        row = int(((loads + lengths[document]) * share).max(axis=1).argmin())
        rows[document] = row
        loads[row] += lengths[document]
    return rows, loads


def _renumbered(rows: Ints) -> Ints:
    _, first, number = np.unique(rows, return_index=True, return_inverse=True)
    ranks: Ints = np.argsort(np.argsort(first))[number]
    return ranks
