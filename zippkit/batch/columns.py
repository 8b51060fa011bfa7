"""Runs of tokens to the padded columns of a tower, with no loop over tokens.

All rows are one line of places: the runs of a row one behind the other, then a run of padding as long as the row is
short. What is the same for a whole run is repeated over its places; the rest counts on along them.

Shapes: R runs, N = B x T places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippkit.batch.batch import IGNORE
from zippkit.batch.interleave import Run

Ints = NDArray[np.int64]
PADDING = Run(document=0, segment=-1, length=0, order=-1, order_step=0, visible=-1, visible_step=0, modality=-1)
LENGTH = Run._fields.index("length")


@dataclass(frozen=True)
class Placing:
    """Where each document stands; several that share a row stand in it in their own order."""

    row: Ints
    """(n_documents,) its row."""
    order: Ints
    """(n_documents,) order of its first token in the row."""
    segment: Ints
    """(n_documents,) index of its first segment in the row."""
    n_rows: int
    packed: bool
    """Whether some row holds several documents."""


def one_each(n_documents: int) -> Placing:
    """Give each document a row of its own."""
    nothing = np.zeros(n_documents, dtype=np.int64)
    return Placing(np.arange(n_documents), nothing, nothing, n_documents, packed=False)


def in_rows(row: Ints, n_orders: Sequence[int], n_segments: Sequence[int]) -> Placing:
    """Let documents share rows.

    Args:
        row: (n_documents,) the row of each.
        n_orders: how many orders each takes.
        n_segments: of each.
    """
    order, segment = np.zeros(len(row), dtype=np.int64), np.zeros(len(row), dtype=np.int64)
    taken: dict[int, tuple[int, int]] = {}
    for document, each in enumerate(row.tolist()):
        order[document], segment[document] = taken.get(each, (0, 0))
        taken[each] = int(order[document]) + n_orders[document], int(segment[document]) + n_segments[document]
    return Placing(row, order, segment, len(taken), packed=len(taken) < len(row))


def as_table(runs: Sequence[tuple[int, ...]]) -> Ints:
    """Runs as rows of an array (R, fields of a run)."""
    return np.array(list(chain.from_iterable(runs)), dtype=np.int64).reshape(-1, len(Run._fields))


def by_field(table: Ints) -> dict[str, Ints]:
    """The fields of runs, (R,) each."""
    return dict(zip(Run._fields, table.T, strict=True))


def padded_length(length: int, multiple: int) -> int:
    """Round a length up to the next multiple."""
    return -(-length // multiple) * multiple


class Line:
    """One tower's places in all rows, and what is the same for each run of them."""

    def __init__(self, table: Ints, placing: Placing, multiple: int) -> None:
        """Sort the runs by row, and pad each row to one length.

        Args:
            table: runs in the order of documents (`as_table`).
            placing: of the documents.
            multiple: the length of rows is a multiple of this.
        """
        self.packed = placing.packed
        given, n_rows = by_field(table), placing.n_rows
        row = placing.row[given["document"]]
        filled = np.bincount(row, given["length"], n_rows).astype(np.int64)
        self.shape = n_rows, padded_length(int(filled.max()), multiple)
        padding = np.full((n_rows, len(PADDING)), PADDING)
        padding[:, LENGTH] = self.shape[1] - filled
        rows = np.concatenate((row, np.arange(n_rows)))
        at = rows.argsort(kind="stable")
        self.row = rows[at]
        run = by_field(np.concatenate((table, padding))[at])
        self.length, self.document, self.loss = run["length"], run["document"], run["loss"].astype(bool)
        self.modality, self.following, self.inserted = run["modality"], run["following"], run["inserted"].astype(bool)
        self.order_step, self.visible_step = run["order_step"], run["visible_step"]
        self.own_segment = run["segment"]
        """(R,) index of its segment in its document; -1 at padding."""
        self.real = self.own_segment >= 0
        self.framed = self.modality >= 0
        """(R,) bool: neither padding nor inserted."""
        self.start = placing.order[self.document] * self.real
        self.order, self.visible = run["order"] + self.start, run["visible"] + self.start
        self.segment = np.where(self.real, self.own_segment + placing.segment[self.document], -1)
        self.content = (given["inserted"] == 0).cumsum()[at[self.framed]] - 1
        """Of each framed run, the index of its content among those of the tower."""
        self.stops = self.length.cumsum()
        self.starts = self.stops - self.length
        self.places = np.arange(n_rows * self.shape[1])
        self.is_real = self.spread(self.real)
        self.offset = (self.places - self.spread(self.starts)) * self.is_real
        """(N,) index within its run; 0 at padding."""

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Repeat what each run (R,) has at all its places (N,)."""
        return values.repeat(self.length)

    def positions(self) -> Ints:
        """(N,) index among the tower's own tokens of the document; padding counts on, or is 0 in a packed batch."""
        if not self.packed:
            return np.tile(np.arange(self.shape[1]), self.shape[0])
        first = np.ones(len(self.length), dtype=bool)
        first[1:] = (self.document[1:] != self.document[:-1]) | (self.real[1:] != self.real[:-1])
        begun = np.maximum.accumulate(np.where(first, self.starts, 0))
        found: Ints = (self.places - self.spread(begun)) * self.is_real
        return found

    def tokens(self, ids: Ints | None, frames: Ints, filling: int) -> Ints:
        """(N,) token ids: each segment's, in its frame.

        Args:
            ids: of all segments, run after run, without begin and end; None where the tower is continuous.
            frames: (3, modalities) begin, end and first id of all that a run can be of.
            filling: the id at padding and in inserted slots.
        """
        inner = self.spread(self.framed)
        if ids is None:
            return np.where(inner, 0, filling)
        begin, end, first = frames[:, self.modality[self.framed]]
        tokens = np.full(len(self.places), filling)
        starts, lasts = self.starts[self.framed], self.stops[self.framed] - 1
        inner[starts] = inner[lasts] = False
        tokens[inner] = ids + first.repeat(self.length[self.framed] - 2) if first.any() else ids
        tokens[starts], tokens[lasts] = begin, end
        return tokens

    def targets(self, tokens: Ints) -> Ints:
        """(N,) the next token of the same segment, where a loss is asked."""
        asked = self.spread(self.loss)
        asked[self.stops[self.loss] - 1] = False
        targets = np.full(len(tokens), IGNORE)
        np.copyto(targets[:-1], tokens[1:], where=asked[:-1])
        return targets

    def after(self) -> Ints:
        """(N,) what follows each segment, at its last token."""
        found = np.full(len(self.places), IGNORE)
        found[self.stops[self.framed] - 1] = self.following[self.framed]
        return found

    def n_segments(self) -> int:
        """Most segments in one row."""
        if not self.inserted.any():
            return int(np.bincount(self.row[self.real]).max())
        # A segment may stand in several runs: its own, and places of more than one link.
        most = self.segment.max() + 1
        return int(np.bincount(np.unique((self.row * most + self.segment)[self.real]) // most).max())
