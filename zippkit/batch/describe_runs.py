"""The staircases of a batch that is being made, from the runs that it is laid out in: no token is looked at.

What `zippkit.batch.describe` finds in the columns of any batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

import numpy as np

from zippkit.batch.columns import Ints, Line
from zippkit.batch.staircase import Staircase, runs


class Stairs(NamedTuple):
    """What the tokens of one tower see."""

    own: Staircase
    over: dict[str, Staircase]
    """By source."""


def described(lines: Mapping[str, Line], causal: Mapping[str, bool], sees: Set[tuple[str, str]]) -> dict[str, Stairs]:
    """Describe what each tower's tokens see.

    Args:
        lines: each tower's places in all rows.
        causal: for each of them, whether it is.
        sees: (target, source) pairs that are to be described.
    """
    towers = {name: _Runs(line, causal[name]) for name, line in lines.items()}
    read: dict[str, list[str]] = {name: [] for name in towers}
    for target, source in sorted(sees):
        read[target].append(source)
    return {
        name: Stairs(of.own(), {source: of.over(towers[source]) for source in read[name]})
        for name, of in towers.items()
    }


class _Runs:
    """A tower's runs that hold tokens. Shapes: R runs."""

    def __init__(self, line: Line, causal: bool) -> None:
        """Take the runs of a tower.

        Args:
            line: its places in all rows.
            causal: whether its tokens see those before them, or their whole segment.
        """
        self.causal, self.shape = causal, line.shape
        there = (line.real & (line.length > 0)).nonzero()[0]
        columns = (line.row, line.starts, line.length, line.start, line.segment, line.order, line.order_step)
        self.row, starts, self.length, self.start, self.segment, self.order, step = (each[there] for each in columns)
        self.place = starts - self.row * line.shape[1]
        """(R,) index of its first token in its row, and so how many tokens are before it."""
        self.stop = self.place + self.length
        self.last = self.order + (self.length - 1) * step
        """(R,) order of its last token."""
        self.visible, self.visible_step = line.visible[there], line.visible_step[there]
        self._span = int(self.visible.max(initial=0)) + 2
        self._seen_from = self.visible + self._span * self.row

    def own(self) -> Staircase:
        """As `zippkit.batch.describe.describe_self`."""
        starts, stops = runs(self.row, self.start if self.causal else self.segment)
        first, stop = self.place[starts], self.stop[stops - 1]
        return self._staircase(self.shape[1], self.row[starts], first, stop, first, first + 1 if self.causal else stop)

    def over(self, source: _Runs) -> Staircase:
        """As `zippkit.batch.describe.describe_cross`.

        Where two towers advance together, both have a token at every tick: each sees one more than the one before it.
        """
        starts, stops = runs(self.row, self.segment)
        row, ends = self.row[starts], stops - 1
        orders = np.array((self.start[starts], self.order[starts], self.last[ends]))
        before, first, last = source.n_visible(row, orders)
        return self._staircase(
            source.shape[1], row, self.place[starts], self.stop[ends], before, first, rising=last > first
        )

    def n_visible(self, row: Ints, order: Ints) -> Ints:
        """How many tokens of a row are visible before an order; rows and orders of the queries broadcast."""
        at = self._seen_from.searchsorted(np.minimum(order, self._span - 1) + self._span * row) - 1
        step, length = self.visible_step[at], self.length[at]
        ticks = -((self.visible[at] - order) // np.maximum(step, 1))
        within = np.where(step > 0, np.minimum(ticks, length), length)
        seen: Ints = (self.place[at] + within) * ((at >= 0) & (self.row[at] == row))
        return seen

    def _staircase(self, n_keys: int, *columns: Ints, rising: Ints | None = None) -> Staircase:
        steps = np.empty((len(columns[0]), 6), dtype=np.int32)
        for i, column in enumerate(columns):
            steps[:, i] = column
        steps[:, 5] = self.causal if rising is None else rising
        return Staircase(steps, *self.shape, n_keys)
