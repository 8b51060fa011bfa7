"""Examples written as rows of Parquet files, and checked against each other on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zippkit.data.table import FULL_SCALE, OWN_COLUMNS, Example, Item, samples_column
from zippkit.errors import DataError
from zippkit.system.extras import require

if TYPE_CHECKING:
    import pyarrow

Kind: TypeAlias = Literal["text", "ids", "waveform"]
"""Content of a column."""

_ROWS_AT_ONCE = 1024
_SAMPLES_AT_ONCE = 2**16
"""Rows are read in groups of about so many samples: 1 to 2 ms for one row. A smaller group is read faster and makes
a longer table of contents."""
_LOUDEST = 2.0
"""Resampling may carry a sample a little beyond 1; further out are integers that somebody forgot to scale."""


@dataclass
class Columns:
    """The modalities of a file's rows, and what is found out about them as the rows are written."""

    kinds: dict[str, Kind]
    """Modality to what it holds."""
    optional: frozenset[str]
    """Modalities that an example may lack."""
    n_examples: int = 0
    n_rows: dict[str, int] = field(init=False)
    """Examples that have the modality."""
    largest: dict[str, int] = field(init=False)
    """The largest id of each modality of ids, -1 if there is none."""

    def __post_init__(self) -> None:
        self.n_rows = dict.fromkeys(self.kinds, 0)
        self.largest = {name: -1 for name, kind in self.kinds.items() if kind == "ids"}

    def add(self, example: Example) -> None:
        """Check one example against the others.

        Raises:
            DataError: a modality too few or too many, text for ids, or ids or samples that cannot be stored.
        """
        # Whether an array fits its column is looked at below, and told more closely.
        kinds = {name: self._kind(name, item) for name, item in example.items.items()}
        if kinds != {name: kind for name, kind in self.kinds.items() if name in kinds or name not in self.optional}:
            expected = f"expected {_told(self.kinds)}"
            whence = (
                f", {_some(self.optional)} only where there is any" if self.optional else " as in the first example"
            )
            raise DataError(f"example {example.id!r}: {_told(kinds)}, {expected}{whence}")
        if not kinds:
            raise DataError(f"example {example.id!r} has none of {_some(self.kinds)}")
        self.n_examples += 1
        for name, kind in kinds.items():
            self.n_rows[name] += 1
            if kind == "ids":
                self._add_ids(example.id, name, np.asarray(example.items[name]))
            elif kind == "waveform":
                _check_waveform(example.id, name, np.asarray(example.items[name]))

    def _kind(self, name: str, item: Item) -> Kind:
        return kind_of(item, self.kinds.get(name) == "waveform")

    def _add_ids(self, example: str, name: str, ids: NDArray[Any]) -> None:
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or (ids.size and ids.min() < 0):
            raise DataError(f"example {example!r}: {name} is {ids.dtype}{ids.shape}, expected ids in one dimension")
        largest = max(self.largest[name], 0, int(ids.max(initial=-1)))
        if largest > np.iinfo(np.uint16).max:
            raise DataError(f"example {example!r}: {name} has id {largest}, expected at most 65535")
        self.largest[name] = largest


def kind_of(item: Item, is_waveform: bool) -> Kind:
    """Kind of an item; whether an array is ids or a waveform is the dataset's to say."""
    if isinstance(item, str):
        return "text"
    return "waveform" if is_waveform else "ids"


def _check_waveform(example: str, name: str, wave: NDArray[Any]) -> None:
    where = f"example {example!r}: {name}"
    if wave.ndim != 1 or not np.issubdtype(wave.dtype, np.floating):
        raise DataError(f"{where} is {wave.dtype}{wave.shape}, expected floats of one channel, from -1 to 1")
    loudest = float(np.abs(wave).max(initial=0))
    if not loudest <= _LOUDEST:
        raise DataError(f"{where} has samples up to {loudest:g}, expected -1 to 1 (divide 16-bit samples by 32768)")


def write_rows(path: Path, examples: Iterable[Example], kinds: Mapping[str, Kind], partial: bool) -> Columns:
    """Write one Parquet file.

    Args:
        path: the file.
        examples: its rows, read once.
        kinds: modalities that are known beforehand, such as those of waveforms; others are as in the first example.
        partial: an example may lack those that are known beforehand.

    Raises:
        DataError: no examples, equal ids, modalities that differ between examples, ids outside 0 to 65535, or samples
            that are not between -1 and 1.
    """
    require("pyarrow")
    import pyarrow.parquet

    stream = iter(examples)
    first = next(stream, None)
    if first is None:
        raise DataError(f"{path.name}: no examples")
    found = {name: kind_of(item, kinds.get(name) == "waveform") for name, item in first.items.items()}
    columns = Columns((dict(kinds) if partial else {}) | found, frozenset(kinds if partial else ()))
    waves = [name for name, kind in columns.kinds.items() if kind == "waveform"]
    taken = [*OWN_COLUMNS, *map(samples_column, waves)]
    if not columns.kinds or not columns.kinds.keys().isdisjoint(taken):
        raise DataError(f"{path.name}: modalities {sorted(columns.kinds)}, expected some, and none of {tuple(taken)}")
    schema = _schema(columns.kinds)
    seen: set[str] = set()
    rows = (_row(example, columns, seen) for example in chain([first], stream))
    # Neighbouring samples are alike, so their differences are small numbers; ids and words come back again and again.
    encoding = {f"{name}.list.element": "DELTA_BINARY_PACKED" for name in waves}
    words = [name for name in schema.names if name not in waves] if waves else True
    with pyarrow.parquet.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=words, column_encoding=encoding or None
    ) as writer:
        for chunk in _chunks(rows, [samples_column(name) for name in waves]):
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema))
    return columns


def _schema(kinds: Mapping[str, Kind]) -> pyarrow.Schema:
    import pyarrow

    types = {
        "text": pyarrow.string(),
        "ids": pyarrow.list_(pyarrow.uint16()),
        "waveform": pyarrow.list_(pyarrow.int16()),
    }
    own = {"id": pyarrow.string(), "speaker": pyarrow.string(), "seconds": pyarrow.float32()}
    columns = own | {name: types[kind] for name, kind in kinds.items()}
    columns |= {samples_column(name): pyarrow.int32() for name, kind in kinds.items() if kind == "waveform"}
    return pyarrow.schema(list(columns.items()))


def _row(example: Example, columns: Columns, seen: set[str]) -> dict[str, object]:
    """The example as Parquet takes it, checked; a modality that it lacks is left out."""
    if example.id in seen:
        raise DataError(f"two examples have the id {example.id!r}")
    seen.add(example.id)
    columns.add(example)
    row: dict[str, object] = {"id": example.id, "speaker": example.speaker, "seconds": example.seconds, **example.items}
    for name, item in example.items.items():
        if columns.kinds[name] == "waveform":
            scaled = np.rint(np.asarray(item, np.float32) * FULL_SCALE)
            row[name] = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
            row[samples_column(name)] = len(scaled)
    return row


def _chunks(rows: Iterator[dict[str, Any]], sizes: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Rows that are written, and later read, together; ``sizes`` are the columns that count samples."""
    chunk: list[dict[str, Any]] = []
    n_samples = 0
    for row in rows:
        chunk.append(row)
        n_samples += sum(row.get(size) or 0 for size in sizes)
        if len(chunk) == _ROWS_AT_ONCE or n_samples >= _SAMPLES_AT_ONCE:
            yield chunk
            chunk, n_samples = [], 0
    if chunk:
        yield chunk


def _told(kinds: Mapping[str, Kind]) -> str:
    return ", ".join(f"{name} as {kind}" for name, kind in sorted(kinds.items())) or "nothing"


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
