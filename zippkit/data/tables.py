"""Files of examples, mapped: columns by groups of rows. The older Parquet files are in `zippkit.data.parquet`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zippkit.data.block_checksums import BlockChecksums
from zippkit.data.ragged import Ragged
from zippkit.errors import DataError
from zippkit.system.extras import require

if TYPE_CHECKING:
    import pyarrow

_MESSAGE = 8
"""Bytes before a message's metadata: a mark, and its length."""
_TAIL = 10
"""Bytes after the footer: its length, and ``ARROW1``."""


class Table(ABC):
    """The columns of one file, in groups of rows that lie together."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""

    @property
    @abstractmethod
    def n_rows(self) -> int:
        """Number of rows."""

    @abstractmethod
    def is_text(self, name: str) -> bool:
        """Whether a column is text, or lists of text."""

    @abstractmethod
    def ends(self, name: str) -> NDArray[np.int64]:
        """For each group of a column, the row behind its last."""

    @abstractmethod
    def group(self, name: str, number: int) -> Ragged:
        """One group of a column; where its rows begin is checked, and `check` is for what is read of its values."""

    def check(self, values: NDArray[Any]) -> NDArray[Any]:
        """``values`` of a group, compared with what was written."""
        return values

    def at(self, name: str, index: int) -> tuple[Ragged, int]:
        """The group that holds a row, and the row's index in it."""
        ends = self.ends(name)
        number = int(np.searchsorted(ends, index, side="right"))
        return self.group(name, number), index - (int(ends[number - 1]) if number else 0)

    def has(self, name: str, index: int) -> bool:
        """Whether a row is there, and not an empty list of items."""
        found, row = self.at(name, index)
        return found.has(row) and (len(found.offsets) < 2 or next(found.items(row), None) is not None)

    def everywhere(self, name: str, facts: Callable[[Ragged], NDArray[Any]]) -> NDArray[Any]:
        """Facts about the rows of a column, from all groups."""
        return np.concatenate([facts(self.group(name, number)) for number in range(len(self.ends(name)))])

    def lengths(self, name: str) -> NDArray[np.int64]:
        """(n_rows,) values of each row."""
        return self.everywhere(name, Ragged.lengths)

    def counts(self, name: str) -> NDArray[np.int64]:
        """(n_rows,) items of each row: where a row is no list, 1 if it is there."""
        return self.everywhere(name, Ragged.counts)


class MappedTable(Table):
    """An Arrow file, of which nothing is read but what is asked for; processes share the memory that it takes."""

    def __init__(self, path: Path, checksums: Path) -> None:
        self.path = path
        self._checksums = checksums
        self._columns: dict[tuple[str, int], Ragged] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._file.schema.names)

    @property
    def n_rows(self) -> int:
        return int(self._checks.ends[-1])

    def is_text(self, name: str) -> bool:
        return "string" in str(self._file.schema.field(name).type)

    def ends(self, name: str) -> NDArray[np.int64]:
        del name
        return self._checks.ends

    def check(self, values: NDArray[Any]) -> NDArray[Any]:
        self._checks.check_view(values)
        return values

    def group(self, name: str, number: int) -> Ragged:
        if (name, number) not in self._columns:
            self._keep(number)
        return self._columns[name, number]

    def _keep(self, number: int) -> None:
        """Look where the columns of a batch of rows are."""
        # A batch begins with its table of contents, which must not be believed before it is compared.
        start, checks = int(self._checks.starts[number]), self._checks
        checks.check(start, start + _MESSAGE)
        length = int.from_bytes(checks.content[start + 4 : start + _MESSAGE].tobytes(), "little")
        checks.check(start, start + _MESSAGE + length)
        with reading(self.path):
            batch = self._file.get_batch(number)
        for name, column in zip(self.names, batch.columns, strict=True):
            for buffer in _all_but_values(column):
                checks.check(buffer.address - self._base, buffer.address - self._base + buffer.size)
            self._columns[name, number] = Ragged.of(column)

    @property
    def _base(self) -> int:
        return int(self._checks.content.ctypes.data)

    @cached_property
    def _checks(self) -> BlockChecksums:
        require("pyarrow")
        import pyarrow

        with reading(self.path):
            content = np.frombuffer(pyarrow.memory_map(str(self.path)).read_buffer(), np.uint8)
        return BlockChecksums.of(self._checksums, self.path, content)

    @cached_property
    def _file(self) -> pyarrow.RecordBatchFileReader:
        import pyarrow

        content = self._checks.content
        footer = int.from_bytes(content[-_TAIL : -_TAIL + 4].tobytes(), "little")
        self._checks.check(0, _MESSAGE)
        self._checks.check(max(0, len(content) - footer - _TAIL), len(content))
        with reading(self.path):
            return pyarrow.ipc.open_file(pyarrow.py_buffer(content))


class MemoryTable(Table):
    """One column that was worked out, such as the ids of text."""

    def __init__(self, name: str, column: Ragged) -> None:
        self._name, self._column = name, column

    @property
    def names(self) -> tuple[str, ...]:
        return (self._name,)

    @property
    def n_rows(self) -> int:
        return len(self._column)

    def is_text(self, name: str) -> bool:
        del name
        return False

    def ends(self, name: str) -> NDArray[np.int64]:
        del name
        return np.array([len(self._column)])

    def group(self, name: str, number: int) -> Ragged:
        del name, number
        return self._column


def _all_but_values(column: pyarrow.Array) -> Iterator[pyarrow.Buffer]:
    """The buffers that say where a column's rows are."""
    buffers = column.buffers()
    return (buffer for buffer in buffers[:-1] if buffer is not None)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tell of a file that cannot be read as a DataError."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
        raise DataError(f"{path}: not a readable {kind} file ({' '.join(str(error).split())})") from None
