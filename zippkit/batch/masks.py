"""Who sees whom in an interleaved sequence: one comparison of orders, and the staircase that it draws.

A worked example, text "ab", then speech 7 8, then text "c" (design, section 4)::

    order of text tokens    <b>0 a1 b2 <e>3 <b>8 c9 <e>10
    order of speech tokens  <b>4 7:5 8:6 <e>7

The text token c (order 9) sees the speech tokens 4 to 7; the text token a (order 1) sees none of them.
True always means "may attend".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch


def cross_mask(query_order: Tensor, key_order: Tensor, query_start: Tensor | None = None) -> Tensor:
    """Which source tokens each target token sees: those of its own document that come strictly before it.

    Args:
        query_order: (B, T) order of the target's tokens; -1 marks padding, which sees nothing.
        key_order: (B, S) order from which a source token is visible; -1 marks padding, which nobody sees.
        query_start: (B, T) order of the first token of each target token's document; None where every row is one
            document (`zippkit.batch.batch.TowerBatch.document_start`).

    Returns:
        (B, T, S) bool.
    """
    keys = key_order[:, None, :]
    first = 0 if query_start is None else query_start[:, :, None]
    return (keys >= first) & (keys < query_order[:, :, None])


def self_mask(batch: TowerBatch, causal: bool) -> Tensor | None:
    """(B, T, T) mask of a tower's own tokens, or None where plain causal attention says the same.

    Padding stands after a row's tokens, so a causal tower needs no mask, unless documents share a row; one that is not
    causal sees its segment.
    """
    if not causal:
        return batch.segment[:, :, None] == batch.segment[:, None, :]
    return (batch.start[:, :, None] == batch.start[:, None, :]).tril() if batch.packed else None


def cache_mask(positions: Tensor, length: int) -> Tensor:
    """(B, T, length) mask of a tower's cache, where slot ``i`` holds the token at position ``i``."""
    return torch.arange(length, device=positions.device) <= positions[:, :, None]


@dataclass(frozen=True)
class Step:
    """One rectangle of a row's mask: these queries see these keys."""

    query_start: int
    query_stop: int
    key_start: int
    key_stop: int


@dataclass(frozen=True)
class Staircase:
    """A mask as a few integers per segment, which is all that it ever says.

    ``steps[b]`` holds one rectangle for each query segment of row ``b``. In a causal self-mask, the keys of a
    rectangle that do not come before their query are cut off.
    """

    steps: tuple[tuple[Step, ...], ...]
    n_queries: int
    n_keys: int
    causal: bool = False

    def dense(self) -> Tensor:
        """(B, T, S) bool."""
        mask = torch.zeros(len(self.steps), self.n_queries, self.n_keys, dtype=torch.bool)
        for row, steps in zip(mask, self.steps, strict=True):
            for step in steps:
                row[step.query_start : step.query_stop, step.key_start : step.key_stop] = True
        return mask.tril() if self.causal else mask

    def __str__(self) -> str:
        rows = (
            "\n".join("".join("#" if cell else "." for cell in query) for query in row) for row in self.dense().tolist()
        )
        return "\n\n".join(rows)


def _runs(values: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
    """(start, stop) of each run of equal values."""
    stop = 0
    for _, run in groupby(values):
        start, stop = stop, stop + len(list(run))
        yield start, stop


def _real(batch: TowerBatch, column: str, row: int) -> list[int]:
    """A row's values without its padding."""
    n_tokens = int((batch.segment[row] >= 0).sum())
    values: list[int] = getattr(batch, column)[row, :n_tokens].tolist()
    return values


def describe_cross(target: TowerBatch, source: TowerBatch) -> Staircase:
    """Describe a link's mask as a staircase.

    Each segment of the target, or each of its tokens where the two towers advance together, sees the source's tokens
    before it.
    """
    rows = []
    for row in range(len(target.tokens)):
        visible = _real(source, "visible", row)
        n_seen = [bisect_left(visible, order) for order in _real(target, "order", row)]
        steps = _runs(list(zip(_real(target, "segment", row), n_seen, strict=True)))
        rows.append(tuple(Step(start, stop, 0, n_seen[start]) for start, stop in steps))
    return Staircase(tuple(rows), target.tokens.shape[1], source.tokens.shape[1])


def describe_self(batch: TowerBatch, causal: bool) -> Staircase:
    """The mask of a tower's own tokens: everything before, or a whole segment where the tower is not causal."""
    rows = (_runs(_real(batch, "segment", row)) for row in range(len(batch.tokens)))
    steps = tuple(tuple(Step(start, stop, 0 if causal else start, stop) for start, stop in row) for row in rows)
    n_tokens = batch.tokens.shape[1]
    return Staircase(steps, n_tokens, n_tokens, causal)
