"""A mask as a few integers for each segment: the staircase that the order of an interleaved sequence draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int32]


class Step(NamedTuple):
    """A run of one row's queries, and the keys that they see."""

    row: int
    query_start: int
    query_stop: int
    key_start: int
    key_stop: int
    """Behind the last key that the first query sees."""
    slope: int = 0
    """0: all queries see the same keys, a rectangle. 1: each sees one key more than the one before it."""


@dataclass(frozen=True)
class Staircase:
    """Which keys the tokens of a tower see: one step for each segment, or for each document where masks are causal."""

    steps: Integers
    """(N, 6) the fields of `Step`, by row and then by query; padding is in none of them."""
    n_rows: int
    n_queries: int
    n_keys: int
    alike: bool = field(init=False)
    """Whether in every row all queries see the same keys, so that a mask needs no entry for each query."""
    whole: bool = field(init=False)
    """Whether all queries of all rows see every key, so that there is nothing to mask."""

    def __post_init__(self) -> None:
        # Known on the host before the step, as plain bools: a compiled step asks nothing else.
        level = not self.steps[:, 5].any()
        object.__setattr__(self, "alike", level and self._same_keys())
        object.__setattr__(self, "whole", level and self._all_keys())

    @classmethod
    def of(cls, steps: Sequence[Step], n_rows: int, n_queries: int, n_keys: int) -> Self:
        """A staircase of single steps, ordered by row and query."""
        return cls(np.array(steps, dtype=np.int32).reshape(-1, 6), n_rows, n_queries, n_keys)

    @property
    def n_bytes(self) -> int:
        """What the description occupies."""
        return self.steps.nbytes

    def _same_keys(self) -> bool:
        rows, keys = self.steps[:, 0], self.steps[:, 3:5]
        return not (keys[1:] != keys[:-1])[rows[1:] == rows[:-1]].any()

    def _all_keys(self) -> bool:
        return not self.steps[:, 3].any() and bool((self.steps[:, 4] == self.n_keys).all())

    def limits(self) -> tuple[Integers, Integers]:
        """(B, T) the first key that each query sees, and the one behind its last; both 0 where it sees none."""
        first, stop = (np.zeros((self.n_rows, self.n_queries), dtype=np.int32) for _ in range(2))
        for row, query_start, query_stop, key_start, key_stop, slope in self.steps.tolist():
            first[row, query_start:query_stop] = key_start
            stop[row, query_start:query_stop] = key_stop + slope * np.arange(query_stop - query_start)
        return first, stop

    def dense(self) -> Tensor:
        """(B, T, S) bool, True where a query may attend."""
        first, stop = (torch.from_numpy(limit)[:, :, None] for limit in self.limits())
        keys = torch.arange(self.n_keys)
        return (first <= keys) & (keys < stop)

    def __str__(self) -> str:
        rows = (
            "\n".join("".join("#" if cell else "." for cell in query) for query in row) for row in self.dense().tolist()
        )
        return "\n\n".join(rows)


def runs(*columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and stop of each run in which none of the (N,) columns changes."""
    first = np.ones(len(columns[0]), dtype=np.bool_)
    first[1:] = columns[0][1:] != columns[0][:-1]
    for column in columns[1:]:
        first[1:] |= column[1:] != column[:-1]
    starts = first.nonzero()[0]
    stops = np.empty_like(starts)
    stops[:-1], stops[-1:] = starts[1:], len(first)
    return starts, stops
