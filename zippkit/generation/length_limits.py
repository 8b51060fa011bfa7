"""How long a row's segments can get: by each tower's longest sequence, and by what is still to follow in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zippkit.errors import DataError
from zippkit.plan.graph import Graph

Turn = tuple[str, ...]
"""Modalities that take their turn together: one, or two that have one clock."""


@dataclass
class Progress:
    """How far a row has come."""

    order: int = 0
    """Order of the next token in the whole sequence."""
    positions: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """For each tower, the position id of the row's next token."""
    waiting: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    """For each tower, what links insert before its next segment: the number of the segment that is stood for, and how
    many places."""


@dataclass(frozen=True)
class LengthLimits:
    """The limits that the longest sequences of a composition's towers set."""

    graph: Graph

    def used(self, tower: str, row: Progress) -> int:
        """Tokens of a row that count against the tower's longest sequence.

        Its own, inserted places that wait for its next segment included; or, where towers share their attention, those
        of all.
        """
        own = row.positions[tower] + sum(n for _, n in row.waiting[tower])
        return max(row.order, own) if tower in self.graph.layout.shared else own

    def check(self, tower: str, row: Progress, advancing: Sequence[str]) -> None:
        """Refuse a prompt behind which the segments of ``advancing`` towers cannot at least be framed.

        Raises:
            DataError: there is no room for their begin and end ids.
        """
        limit, n_turns = self.graph.towers[tower].max_len, self._turns_left(tower, advancing)
        used = self.used(tower, row)
        if limit is not None and used + 2 * n_turns > limit:
            raise DataError(
                f"{tower}: the prompt has {used} tokens, and begin and end of {n_turns} new segments are to "
                f"follow; the tower takes at most {limit}"
            )

    def fits(self, turn: Sequence[str], row: Progress) -> bool:
        """Whether a turn of these towers can at least be framed."""
        for tower in turn:
            limit, n_segments = self.graph.towers[tower].max_len, self._turns_left(tower, turn)
            if limit is not None and self.used(tower, row) + 2 * n_segments > limit:
                return False
        return True

    def longest(self, turn: Sequence[str], later: Sequence[str], row: Progress, limit: int) -> int:
        """The longest segment of a turn of these towers, in tokens.

        Args:
            turn: towers that advance together.
            later: towers that advance after it, each of whose segments can still be framed.
            row: how far the row has come.
            limit: the most that is asked for.
        """
        shared, to_come = self.graph.layout.shared, [*turn, *later]
        for tower in dict.fromkeys([*turn, *(name for name in later if name in shared)]):
            most = self.graph.towers[tower].max_len
            if most is not None:
                free = most - 2 * self._turns_left(tower, to_come) - self.used(tower, row)
                # Where all tokens count, each step takes one place for every tower of the turn.
                limit = min(limit, free // (len(turn) if tower in shared else 1))
        for insert in self.graph.layout.inserts:
            most = self.graph.towers[insert.target].max_len
            if most is not None and insert.source in turn and insert.target in later:
                free = most - 2 * later.count(insert.target) - self.used(insert.target, row)
                while limit > 0 and insert.n_slots(limit + 2) > free:
                    limit -= 1
        return limit

    def slots(self, tower: str, row: Progress, wanted: Sequence[str], limits: Mapping[str, int]) -> int:
        """The most slots of a tower's cache that a row can come to need for segments of the ``wanted`` modalities."""
        inserts = [insert for insert in self.graph.layout.inserts if insert.target == tower]
        needed = row.positions[tower] + sum(n for _, n in row.waiting[tower])
        for modality in wanted:
            source, longest = self.graph.modalities[modality].tower, limits[modality] + 2
            needed += longest * (source == tower)
            needed += sum(insert.n_slots(longest) for insert in inserts if insert.source == source)
        most = self.graph.towers[tower].max_len
        return needed if most is None else min(needed, most)

    def _turns_left(self, tower: str, advancing: Sequence[str]) -> int:
        """How many segments are still to be framed within a tower's longest sequence.

        Its own; or, where towers share their attention, everything up to its own last one.
        """
        if tower not in self.graph.layout.shared:
            return advancing.count(tower)
        return len(advancing) - list(reversed(advancing)).index(tower)
