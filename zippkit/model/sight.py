"""What queries see of one run of keys, as integer columns: ``start <= key < order``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.batch.masks import cross_mask
from zippkit.batch.staircase import Staircase

ALL = slice(None)


class Sight(NamedTuple):
    """What queries see of one run of keys: ``start <= key < order``."""

    order: Tensor
    """(B, T)"""
    key: Tensor
    """(B, S) -1 where nobody sees it, unless ``start`` is -1 too."""
    start: Tensor | None = None
    """(B, T) None is 0 throughout."""
    stairs: Staircase | None = None
    """The same on the host, where it is known there."""

    def table(self, rows: slice = ALL, queries: slice = ALL, keys: slice = ALL) -> Tensor:
        """(B, T, S) bool, or a part of it."""
        start = None if self.start is None else self.start[rows, queries]
        return cross_mask(self.order[rows, queries], self.key[rows, keys], start)

    def row(self) -> Tensor:
        """(B, 1, S) bool, where all queries of a row see the same keys: what its last one sees."""
        start = None if self.start is None else self.start.amax(dim=1, keepdim=True)
        return cross_mask(self.order.amax(dim=1, keepdim=True), self.key, start)

    def limits(self) -> tuple[Tensor, Tensor]:
        """(B, T) how many keys come before those that a query sees, and how many with them, without a table."""
        keys = self.key.masked_fill(self.key < 0, torch.iinfo(self.key.dtype).max).sort(dim=1).values
        start = torch.zeros_like(self.order) if self.start is None else self.start
        before, with_them = (torch.searchsorted(keys, limit.contiguous()) for limit in (start, self.order))
        return before, with_them

    def any(self) -> Tensor:
        """(B, T) bool: the query sees some key; without a table."""
        before, with_them = self.limits()
        return before < with_them


def slots(tokens: TowerBatch) -> Sight:
    """What a causal tower's tokens see of those in the same row."""
    slot = torch.arange(tokens.order.shape[1], device=tokens.order.device).expand_as(tokens.order)
    if not tokens.packed:
        return Sight(slot + 1, slot, None, tokens.own_stairs)
    begins = torch.diff(tokens.start, dim=1, prepend=tokens.start[:, :1]) != 0
    first = torch.where(begins, slot, 0).cummax(dim=1).values
    return Sight(slot + 1, slot, first, tokens.own_stairs)
