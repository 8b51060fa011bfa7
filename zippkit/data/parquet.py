"""Parquet files, as datasets were until version 0.2: everything but waveforms is read at once."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zippkit.data.checksums import Checksums
from zippkit.data.ragged import Ragged
from zippkit.data.tables import Table, reading
from zippkit.system.extras import require

if TYPE_CHECKING:
    import pyarrow.parquet

_WAVES = "list<element: int16>"


class ParquetTable(Table):
    """A Parquet file; of its waveforms, one group of rows is kept at a time."""

    def __init__(self, path: Path, checksums: Path | None) -> None:
        self.path = path
        self._checksums = None if checksums is None else Checksums(path, checksums)
        # Neighbours are asked for one after the other where a split is gone through in order.
        self._waves = lru_cache(maxsize=1)(self.read_waves)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._file.schema_arrow.names)

    @property
    def n_rows(self) -> int:
        return int(self._file.metadata.num_rows)

    def is_text(self, name: str) -> bool:
        return str(self._file.schema_arrow.field(name).type) == "string"

    def ends(self, name: str) -> NDArray[np.int64]:
        metadata = self._file.metadata
        if self._is_wave(name):
            return np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
        return np.array([self.n_rows])

    def group(self, name: str, number: int) -> Ragged:
        return self._waves(name, number) if self._is_wave(name) else self._columns[name]

    def lengths(self, name: str) -> NDArray[np.int64]:
        if not self._is_wave(name):
            return super().lengths(name)
        column = self._columns[_samples(name)]
        lengths = column.values.astype(np.int64)
        return lengths if column.present is None else np.where(column.present, lengths, 0)

    def counts(self, name: str) -> NDArray[np.int64]:
        return super().counts(_samples(name) if self._is_wave(name) else name)

    def read_waves(self, name: str, number: int) -> Ragged:
        """Read a group of rows with waveforms."""
        with reading(self.path):
            self._check(range(number, number + 1), [name])
            return Ragged.of(self._file.read_row_group(number, columns=[name]).column(0).combine_chunks())

    def _is_wave(self, name: str) -> bool:
        # Ids have no sign.
        return str(self._file.schema_arrow.field(name).type) == _WAVES

    def _check(self, groups: range, names: list[str]) -> None:
        if self._checksums is not None:
            places = [self.names.index(name) for name in names]
            self._checksums.check(self._file.metadata, groups, places)

    @cached_property
    def _file(self) -> pyarrow.parquet.ParquetFile:
        require("pyarrow")
        import pyarrow.parquet

        with reading(self.path):
            if self._checksums is not None:
                self._checksums.check_footer()
            return pyarrow.parquet.ParquetFile(self.path)

    @cached_property
    def _columns(self) -> dict[str, Ragged]:
        """Every column but the waveforms."""
        wanted = [name for name in self.names if not self._is_wave(name)]
        with reading(self.path):
            self._check(range(self._file.num_row_groups), wanted)
            table = self._file.read(columns=wanted)
        # One chunk per column makes access by index a lookup instead of a search.
        return {name: Ragged.of(table.column(name).combine_chunks()) for name in table.column_names}


def _samples(waveform: str) -> str:
    """The column that tells how long each waveform of a modality is, so that none is read for it."""
    return f"{waveform}_samples"
