"""The KV cache of rows that come, grow and go: one layout for every tower, and what generation does with it.

Each layer keeps keys and values as (B, H, S, K). A row's tokens stand one behind the other in its slots (as a rule slot
``i`` holds position ``i``), so that attention reads them as they lie: nothing is gathered in a step. What is held grows
by doubling, ``BLOCK * 2**n`` slots, of all rows at once: few shapes, for steps that are compiled, and no more copied
than was written. A mask hides what a row has not written; it is finite.

A row that ends gives its slots to the row that comes next. Hypotheses of a beam search are one row: their tokens stand
side by side behind the prompt that they share, and each sees its own ancestors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

BLOCK = 64
"""Slots of the smallest cache."""


def capacity_for(n_slots: int) -> int:
    """Slots that are held where so many are in use."""
    capacity = BLOCK
    while capacity < n_slots:
        capacity *= 2
    return capacity


class RowCache(ABC):
    """A tower's cache that grows while it is used, and hands rows on.

    A cache of any other type (`zippkit.model.tower.Tower.new_cache`) is allocated as large as it can come to be.
    """

    @abstractmethod
    def grow(self, n_rows: int, n_slots: int) -> None:
        """Make room for more rows, or more slots in each; what is written stays, and what is new is finite."""

    @abstractmethod
    def put(self, rows: Sequence[int], other: Self, n_slots: int) -> None:
        """Copy the first ``n_slots`` slots of another cache's rows, in order, into these rows."""

    @abstractmethod
    def move(self, row: int, slots: Tensor, first: int) -> None:
        """Copy a row's (N,) slots, in order, into its slots from ``first`` on."""

    @abstractmethod
    def picked(self, rows: Tensor) -> Self:
        """A cache of its own with these (N,) rows, each as often as it is named."""


@dataclass
class KeyValues(RowCache):
    """Keys and values of each layer."""

    keys: list[Tensor]
    """For each layer (B, H, S, K)."""
    values: list[Tensor]

    def extend(self, index: int, keys: Tensor, values: Tensor, slots: Tensor, n_slots: int) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values, (B, H, T, K) each, of layer ``index``.

        Args:
            index: the layer.
            keys: of the new tokens.
            values: of the new tokens.
            slots: (B, T) where they are put.
            n_slots: how many slots are in use, the new ones included.

        Returns:
            Keys and values of the first ``n_slots`` slots, (B, H, S, K) each; views.
        """
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        found = []
        for stores, new in ((self.keys, keys), (self.values, values)):
            store = self._shaped(stores, index, new)
            store.transpose(1, 2)[rows, slots] = new.transpose(1, 2).to(store.dtype)
            found.append(store[:, :, :n_slots])
        return found[0], found[1]

    def grow(self, n_rows: int, n_slots: int) -> None:
        """Grow layer by layer, so that no more than one layer is held twice."""
        for stores in (self.keys, self.values):
            for index, old in enumerate(stores):
                stores[index] = old.new_zeros(n_rows, old.shape[1], n_slots, old.shape[3])
                stores[index][: len(old), :, : old.shape[2]] = old

    def put(self, rows: Sequence[int], other: Self, n_slots: int) -> None:
        """Copy the first ``n_slots`` slots of another cache's rows, in order, into these rows."""
        at = torch.tensor(rows, device=self.keys[0].device)
        for stores, others in ((self.keys, other.keys), (self.values, other.values)):
            for index, new in enumerate(others):
                self._shaped(stores, index, new)[at, :, :n_slots] = new[:, :, :n_slots]

    def move(self, row: int, slots: Tensor, first: int) -> None:
        """Copy a row's (N,) slots, in order, into its slots from ``first`` on."""
        for stores in (self.keys, self.values):
            for store in stores:
                store[row, :, first : first + len(slots)] = store[row][:, slots]

    def picked(self, rows: Tensor) -> Self:
        """A cache of its own with these (N,) rows, each as often as it is named."""
        return type(self)([keys[rows] for keys in self.keys], [values[rows] for values in self.values])

    def _shaped(self, stores: list[Tensor], index: int, new: Tensor) -> Tensor:
        """A layer's store for heads such as the new ones."""
        store = stores[index]
        if store.shape[1] != new.shape[1] or store.shape[3] != new.shape[3]:
            # This layer's heads are not those that were told; nothing has been written yet.
            store = stores[index] = new.new_zeros(len(store), new.shape[1], store.shape[2], new.shape[3])
        return store
