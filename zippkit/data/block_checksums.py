"""Checksums of a mapped file's blocks, and where its batches of rows are: what is read is what was written.

The file of checksums is little-endian: the number of batches, where each begins in the file and where its rows end
(64 bits each); then a CRC-32 for each block of 64 KiB. It is hashed whenever a dataset is opened; a block is compared
once, when something in it is first read.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from zippkit.errors import DataError
from zippkit.system.files import write_bytes

_PLACE = np.dtype("<u8")
_SUM = np.dtype("<u4")
BLOCK = 2**16


def write_block_checksums(file: Path, to: Path, starts: Sequence[int], ends: Sequence[int]) -> None:
    """Write the checksums of a file that was just written.

    Args:
        file: the file.
        to: the file of checksums.
        starts: where each batch begins, in bytes.
        ends: the row behind the last of each batch.
    """
    sums = []
    with file.open("rb") as content:
        while block := content.read(BLOCK):
            sums.append(zlib.crc32(block))
    places = np.array([len(starts), *starts, *ends], _PLACE)
    write_bytes(to, places.tobytes() + np.array(sums, _SUM).tobytes())


@dataclass(frozen=True, eq=False)
class BlockChecksums:
    """Compares what is read of a mapped file with its checksums."""

    path: Path
    """The file of checksums."""
    file: Path
    content: NDArray[np.uint8]
    """The file, mapped."""
    starts: NDArray[np.uint64]
    ends: NDArray[np.int64]
    _sums: NDArray[np.uint32]
    _seen: NDArray[np.bool_] = field(repr=False)

    @classmethod
    def of(cls, path: Path, file: Path, content: NDArray[np.uint8]) -> Self:
        """Read a file of checksums.

        Raises:
            DataError: it is not that of the file.
        """
        raw = path.read_bytes()
        n = int.from_bytes(raw[:8], "little")
        n_blocks = -(-len(content) // BLOCK)
        if len(raw) != (1 + 2 * n) * _PLACE.itemsize + n_blocks * _SUM.itemsize:
            raise DataError(f"{path}: {len(raw)} bytes of checksums, which are not those of {file.name}")
        places = np.frombuffer(raw, _PLACE, 2 * n, offset=8)
        sums = np.frombuffer(raw, _SUM, offset=8 + places.nbytes)
        return cls(path, file, content, places[:n], places[n:].astype(np.int64), sums, np.zeros(n_blocks, bool))

    def check(self, first: int, last: int) -> None:
        """Compare the bytes from ``first`` to before ``last``.

        Raises:
            DataError: they are not what was written.
        """
        if last <= first:
            return
        blocks = range(first // BLOCK, -(-min(last, len(self.content)) // BLOCK))
        if self._seen[blocks.start : blocks.stop].all():
            return
        for block in blocks:
            if zlib.crc32(self.content[block * BLOCK : (block + 1) * BLOCK].data) != self._sums[block]:
                raise DataError(
                    f"{self.file}: bytes from {block * BLOCK}: not what was written (their CRC-32 is not that in "
                    f"{self.path.name}); copy or prepare the dataset again"
                )
            self._seen[block] = True

    def check_view(self, values: NDArray[Any]) -> None:
        """Compare what an array views; one that is no view of the file was read otherwise."""
        first = int(values.ctypes.data) - int(self.content.ctypes.data)
        if values.nbytes and 0 <= first < len(self.content):
            self.check(first, first + values.nbytes)
