"""A column of Arrow as numpy views: items of any length, and lists of such items; nothing is copied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of a column: the values of all of them one after the other, and where each row begins."""

    values: NDArray[Any]
    """(n_values, ...) numbers; of text, its UTF-8 bytes."""
    offsets: tuple[NDArray[np.integer[Any]], ...]
    """None for a number in each row; one where a row is an item, ``values[offsets[i]:offsets[i + 1]]``; two where it is
    a list of items."""
    present: NDArray[np.bool_] | None
    """(len(self),) rows that there are; None if all are."""

    @classmethod
    def of(cls, column: pyarrow.Array) -> Self:
        """View an array of numbers, text, lists, or lists of lists."""
        present = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
        offsets: list[NDArray[np.integer[Any]]] = []
        kind = str(column.type)
        while kind.startswith("list<"):
            offsets.append(column.offsets.to_numpy())
            column = column.values
            kind = str(column.type)
        if kind == "string":
            offsets.append(_view(column, 1, np.dtype(np.int32), len(column) + 1))
            letters = column.buffers()[2]
            return cls(np.frombuffer(letters or b"", np.uint8), tuple(offsets), present)
        shape: tuple[int, ...] = ()
        while kind.startswith("fixed_size_list<"):
            shape = (*shape, column.type.list_size)
            column = column.values
            kind = str(column.type)
        values = _view(column, 1, np.dtype(column.type.to_pandas_dtype()), len(column))
        return cls(values.reshape(-1, *shape), tuple(offsets), present)

    @classmethod
    def packed(cls, items: list[NDArray[Any]], present: NDArray[np.bool_]) -> Self:
        """Put the items of rows one behind the other."""
        return cls(np.concatenate(items), (np.cumsum([0, *map(len, items)]),), present)

    def __len__(self) -> int:
        return len(self.offsets[0]) - 1 if self.offsets else len(self.values)

    def has(self, index: int) -> bool:
        """Whether there is such a row."""
        return self.present is None or bool(self.present[index])

    def row(self, index: int) -> NDArray[Any]:
        """All values of a row."""
        first, last = index, index + 1
        for offsets in self.offsets:
            first, last = int(offsets[first]), int(offsets[last])
        return self.values[first:last]

    def items(self, index: int) -> Iterator[NDArray[Any]]:
        """The items of a row that is a list of items; a row that is an item is the only one."""
        if len(self.offsets) < 2:
            if self.has(index):
                yield self.row(index)
            return
        rows, ends = self.offsets
        for item in range(int(rows[index]), int(rows[index + 1])):
            yield self.values[int(ends[item]) : int(ends[item + 1])]

    def lengths(self) -> NDArray[np.int64]:
        """(len(self),) values of each row, 0 where there is none."""
        bounds: NDArray[Any] = np.arange(len(self) + 1)
        for offsets in self.offsets:
            bounds = offsets[bounds]
        lengths: NDArray[np.int64] = (bounds[1:] - bounds[:-1]).astype(np.int64)
        return lengths

    def counts(self) -> NDArray[np.int64]:
        """(len(self),) items of each row."""
        if len(self.offsets) == 2:
            counts: NDArray[np.int64] = np.diff(self.offsets[0]).astype(np.int64, copy=False)
            return counts
        return np.ones(len(self), np.int64) if self.present is None else self.present.astype(np.int64)


def _view(column: pyarrow.Array, number: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """A buffer of an array as numbers; empty arrays need not have it."""
    buffer = column.buffers()[number]
    if buffer is None or not count:
        return np.zeros(count, dtype)
    return np.frombuffer(buffer, dtype, count + column.offset)[column.offset :]
