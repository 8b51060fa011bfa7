"""Examples read from Parquet files; `zippkit.data.rows` writes them, and nothing else imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zippkit.data.checksums import Checksums
from zippkit.errors import DataError, did_you_mean
from zippkit.system.extras import require

if TYPE_CHECKING:
    import pyarrow.parquet

Item: TypeAlias = str | NDArray[np.int64] | NDArray[np.float32]
"""Text, (U,) ids, or a waveform (N,) with full scale at +-1."""

OWN_COLUMNS = ("id", "speaker", "seconds")
FULL_SCALE = 32_768
"""A waveform is stored as 16-bit samples, as most recordings are made: half the size of floats, and not a bit of a
16-bit recording is lost unless it is resampled."""


def samples_column(waveform: str) -> str:
    """The column that tells how long each waveform of a modality is, so that none is read for it."""
    return f"{waveform}_samples"


@dataclass(frozen=True, eq=False)
class Example:
    """One thing said (or shown), in each of its modalities."""

    id: str
    speaker: str
    seconds: float
    """Duration of the recording; 0 where there is none."""
    items: dict[str, Item] = field(default_factory=dict)
    """Modality to text, ids without begin and end, or waveform; those that the example has."""


@dataclass(frozen=True, eq=False)
class Split:
    """The examples of one Parquet file, by index; the file is read when the first is asked for.

    Waveforms are read where they are asked for, with the few that stand beside them in the file.
    """

    path: Path
    modalities: tuple[str, ...]
    n_examples: int
    checksums: Checksums | None = None
    """By which whatever is read is compared with what was written; older datasets have none."""

    def __len__(self) -> int:
        return self.n_examples

    def __getitem__(self, index: int) -> Example:
        """The example at ``index``; ids come as int64, waveforms as float32.

        Raises:
            IndexError: there is none.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path.name} has {len(self)} examples, asked for index {index}")
        index %= len(self)
        id_, speaker, seconds = (self._columns[name][index].as_py() for name in OWN_COLUMNS)
        there = [name for name in self.modalities if self._column(name)[index].is_valid]
        return Example(id_, speaker, seconds, {name: self._item(name, index) for name in there})

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def names(self) -> list[str]:
        """Ids of all examples, in order."""
        names: list[str] = self._columns["id"].to_pylist()
        return names

    def item(self, index: int, modality: str) -> Item:
        """One modality of the example at ``index``, which has it; nothing else of the example is read.

        Raises:
            DataError: no such modality, or the example lacks it.
        """
        if not self._column(modality)[index].is_valid:
            raise DataError(f"{self.path}: example {self._columns['id'][index].as_py()!r} has no {modality}")
        return self._item(modality, index)

    def lengths(self, modality: str) -> NDArray[np.int64]:
        """(len(self),) ids or samples per example; of text, UTF-8 bytes. Frames not counted; no row is read singly.

        An example that lacks the modality counts 0.

        Raises:
            DataError: no such modality.
        """
        import pyarrow.compute as pc

        column = self._column(modality)
        if modality in self._waves:
            counted = column
        else:
            counted = pc.binary_length(column) if _is_text(column) else pc.list_value_length(column)
        lengths: NDArray[np.int64] = pc.fill_null(counted, 0).to_numpy().astype(np.int64)
        return lengths

    def having(self, modalities: Iterable[str]) -> NDArray[np.int64]:
        """Indices of the examples that have all of these modalities, in order.

        Raises:
            DataError: no such modality.
        """
        there = np.ones(len(self), bool)
        for modality in modalities:
            there &= self._column(modality).is_valid().to_numpy(zero_copy_only=False)
        return np.flatnonzero(there)

    def _column(self, modality: str) -> pyarrow.Array:
        """Facts about a modality, without reading waveforms."""
        if modality not in self.modalities:
            raise DataError(f"{self.path}: no modality {modality!r}{did_you_mean(modality, self.modalities)}")
        return self._columns[samples_column(modality) if modality in self._waves else modality]

    def _item(self, name: str, index: int) -> Item:
        if name in self._waves:
            with self._reading():
                return self._waves[name][index]
        column = self._columns[name]
        if _is_text(column):
            text: str = column[index].as_py()
            return text
        # `as_py` on a list would make a Python integer of each id.
        ids: NDArray[np.int64] = column[index].values.to_numpy().astype(np.int64)
        return ids

    @contextmanager
    def _reading(self) -> Iterator[None]:
        import pyarrow

        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: not a readable Parquet file ({' '.join(str(error).split())})") from None

    @cached_property
    def _file(self) -> pyarrow.parquet.ParquetFile:
        require("pyarrow")
        import pyarrow.parquet

        with self._reading():
            if self.checksums is not None:
                self.checksums.check_footer()
            file = pyarrow.parquet.ParquetFile(self.path)
        names, n_rows = file.schema_arrow.names, file.metadata.num_rows
        expected = [*OWN_COLUMNS, *self.modalities]
        if not set(expected) <= set(names) or n_rows != len(self):
            raise DataError(f"{self.path}: {n_rows} rows of {names}, expected {len(self)} of {expected}")
        return file

    @cached_property
    def _waves(self) -> dict[str, _Waves]:
        types = {name: str(self._file.schema_arrow.field(name).type) for name in self.modalities}
        # As in `list<element: int16>`; ids have no sign.
        names = [name for name, type_ in types.items() if type_.endswith(" int16>")]
        return {name: _Waves(self._file, name, self.checksums) for name in names}

    @cached_property
    def _columns(self) -> dict[str, pyarrow.Array]:
        """Every column but the waveforms."""
        wanted = [name for name in self._file.schema_arrow.names if name not in self._waves]
        with self._reading():
            if self.checksums is not None:
                places = [self._file.schema_arrow.names.index(name) for name in wanted]
                self.checksums.check(self._file.metadata, range(self._file.num_row_groups), places)
            table = self._file.read(columns=wanted)
        # One chunk per column makes access by index a lookup instead of a search.
        return {name: table.column(name).combine_chunks() for name in table.column_names}


class _Waves:
    """A column of waveforms, of which only one group of rows is kept at a time."""

    def __init__(self, file: pyarrow.parquet.ParquetFile, name: str, checksums: Checksums | None) -> None:
        self._file, self._name, self._checksums = file, name, checksums
        self._ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        # Neighbours are asked for one after the other where a split is gone through in order.
        self._group = lru_cache(maxsize=1)(self._read)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        wave: NDArray[np.float32] = self._group(group)[index - first].values.to_numpy() / np.float32(FULL_SCALE)
        return wave

    def _read(self, group: int) -> pyarrow.Array:
        if self._checksums is not None:
            place = self._file.schema_arrow.names.index(self._name)
            self._checksums.check(self._file.metadata, range(group, group + 1), [place])
        return self._file.read_row_group(group, columns=[self._name]).column(0).combine_chunks()


def _is_text(column: pyarrow.Array) -> bool:
    return str(column.type) == "string"
