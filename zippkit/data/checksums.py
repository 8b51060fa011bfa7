"""Checksums of each column of each row group of a Parquet file, which zippkit wrote until version 0.2.

The file of checksums is little-endian 32-bit numbers (CRC-32): of the footer, which says where everything is, and then
of the columns of the first row group, of the second one, and so on.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from zippkit.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet

_NUMBER = np.dtype("<u4")
_PIECE = 2**20
_TAIL = 8
"""Bytes after the footer: its length, and ``PAR1``."""


@dataclass(frozen=True, eq=False)
class Checksums:
    """Compares a Parquet file with its checksums, part by part."""

    parquet: Path
    path: Path
    """The file of checksums."""

    def check_footer(self) -> None:
        """Raise DataError if the table of contents is not what was written."""
        with self.parquet.open("rb") as file:
            self._compare(_footer(file), 0, "the footer")

    def check(self, metadata: pyarrow.parquet.FileMetaData, groups: range, columns: list[int]) -> None:
        """Compare the columns of some row groups.

        Raises:
            DataError: names the first that is not what was written.
        """
        if len(self._sums) != 1 + metadata.num_row_groups * metadata.num_columns:
            raise DataError(f"{self.path}: {len(self._sums)} checksums, which are not those of {self.parquet.name}")
        with self.parquet.open("rb") as file:
            for group in groups:
                for column in columns:
                    name = metadata.schema.column(column).path.partition(".")[0]
                    place = 1 + group * metadata.num_columns + column
                    self._compare(_chunk(file, metadata, group, column), place, f"row group {group}, column {name}")

    def _compare(self, seen: int, place: int, what: str) -> None:
        if not len(self._sums) or seen != self._sums[place]:
            raise DataError(
                f"{self.parquet}: {what}: not what was written (its CRC-32 is not that in {self.path.name}); "
                "copy or prepare the dataset again"
            )

    @cached_property
    def _sums(self) -> NDArray[np.uint32]:
        content = self.path.read_bytes()
        return np.frombuffer(content[: len(content) // _NUMBER.itemsize * _NUMBER.itemsize], _NUMBER)


def _footer(file: BinaryIO) -> int:
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL))
    length = int.from_bytes(file.read(4), "little") + _TAIL
    return _crc(file, max(0, size - length), length)


def _chunk(file: BinaryIO, metadata: pyarrow.parquet.FileMetaData, group: int, column: int) -> int:
    chunk = metadata.row_group(group).column(column)
    first = [chunk.data_page_offset] + ([chunk.dictionary_page_offset] if chunk.has_dictionary_page else [])
    return _crc(file, min(first), chunk.total_compressed_size)


def _crc(file: BinaryIO, first: int, length: int) -> int:
    """Of a part of a file, read piece by piece: a damaged file may say that it is long."""
    file.seek(first)
    crc = 0
    while length > 0 and (piece := file.read(min(length, _PIECE))):
        crc = zlib.crc32(piece, crc)
        length -= len(piece)
    return crc
