"""Examples of a split, by index; nothing is read but what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zippkit.data.parquet import ParquetTable
from zippkit.data.ragged import Ragged
from zippkit.data.tables import MappedTable, MemoryTable, Table
from zippkit.errors import DataError, did_you_mean

Item: TypeAlias = str | NDArray[np.int64] | NDArray[np.float32]
"""Text, (U,) ids, a waveform (N,) with full scale at +-1, or features (N, ...)."""
Encode: TypeAlias = Callable[[str], Sequence[int]]
"""Text to ids, without begin and end."""

OWN_COLUMNS = ("id", "speaker", "seconds")
SEGMENTS = "segments"
"""The column with the modalities of a document's segments, in order."""
FULL_SCALE = 32_768
"""A waveform is stored as 16-bit samples, as most recordings are made: half the size of floats, and not a bit of a
16-bit recording is lost unless it is resampled."""


def ids_column(text: str) -> str:
    """The column with the ids that a tokenizer made of a modality of text when it was written."""
    return f"{text}_ids"


@dataclass(frozen=True, eq=False)
class Example:
    """One thing said (or shown), in each of its modalities; or a document."""

    id: str
    speaker: str
    seconds: float
    """Duration of the recording; 0 where there is none."""
    items: dict[str, Item] = field(default_factory=dict)
    """Modality to text, ids without begin and end, waveform or features; those that the example has."""
    segments: tuple[tuple[str, Item], ...] | None = None
    """Of a document, which then has no items: (modality, item) in order, any number of each."""


@dataclass(frozen=True, eq=False)
class Split:
    """The examples of one file, by index; the file is mapped when the first is asked for."""

    path: Path
    modalities: tuple[str, ...]
    n_examples: int
    checksums: Path | None = None
    """By which whatever is read is compared with what was written; the oldest datasets have none."""
    encoder: Callable[[str], Encode | None] = field(default=lambda _: None, repr=False)
    """The way from text to ids of a modality; None where ids are the text's bytes."""
    documents: bool = False
    """Whether each row is a document: a list of segments."""

    def __len__(self) -> int:
        return self.n_examples

    def __getitem__(self, index: int) -> Example:
        """The example at ``index``; ids come as int64, waveforms and features as float32.

        Raises:
            IndexError: there is none.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path.name} has {len(self)} examples, asked for index {index}")
        index %= len(self)
        seconds = float(self._row("seconds", index)[0])
        segments = self.segments(index) if self.documents else None
        items = {} if self.documents else {name: self._items(name, index)[0] for name in self.there(index)}
        return Example(self.name(index), _text(self._row("speaker", index)), seconds, items, segments)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def name(self, index: int) -> str:
        """Id of the example at ``index``."""
        return _text(self._row("id", index))

    def names(self) -> list[str]:
        """Ids of all examples, in order; of a large split, that is a large list."""
        return [self.name(index) for index in range(len(self))]

    def there(self, index: int) -> list[str]:
        """The modalities that an example has."""
        return [name for name in self.modalities if self._table.has(name, index)]

    def item(self, index: int, modality: str) -> Item:
        """One modality of the example at ``index``, which has it; nothing else of the example is read.

        Raises:
            DataError: no such modality, or the example lacks it, or has several of it.
        """
        return self._only(self._items(self._known(modality), index), index, modality)

    def tokens(self, index: int, modality: str) -> NDArray[Any]:
        """As `item`, with the (U,) ids of text instead of the text."""
        return np.asarray(self._only(self._items(self._known(modality), index, encoded=True), index, modality))

    def segments(self, index: int, encoded: bool = False) -> tuple[tuple[str, Item], ...]:
        """(modality, item) of a document's segments, or of an example's items; text as ids if ``encoded``."""
        if not self.documents:
            return tuple((name, self._items(name, index, encoded)[0]) for name in self.there(index))
        column, row = self._table.at(SEGMENTS, index)
        names = [_text(self._table.check(name)) for name in column.items(row)]
        items = {name: iter(self._items(name, index, encoded)) for name in dict.fromkeys(names)}
        return tuple((name, next(items[name])) for name in names)

    def lengths(self, modality: str) -> NDArray[np.int64]:
        """(len(self),) ids, samples or frames per example; of text, UTF-8 bytes. No row is read singly.

        Begin and end ids are not counted; an example that lacks the modality counts 0, a document's segments are added.

        Raises:
            DataError: no such modality.
        """
        return self._table.lengths(self._known(modality))

    def token_lengths(self, modality: str) -> NDArray[np.int64]:
        """As `lengths`, with text in ids instead of bytes."""
        table, column = self._encoded(self._known(modality))
        return table.lengths(column)

    def counts(self, modality: str) -> NDArray[np.int64]:
        """(len(self),) how many segments of the modality each document has; 1 or 0 where examples are no documents.

        Raises:
            DataError: no such modality.
        """
        return self._table.counts(self._known(modality))

    def having(self, modalities: Iterable[str]) -> NDArray[np.int64]:
        """Indices of the examples that have all of these modalities, in order.

        Raises:
            DataError: no such modality.
        """
        there = np.ones(len(self), bool)
        for modality in modalities:
            there &= self.counts(modality) > 0
        return np.flatnonzero(there)

    def _known(self, modality: str) -> str:
        if modality not in self.modalities:
            raise DataError(f"{self.path}: no modality {modality!r}{did_you_mean(modality, self.modalities)}")
        return modality

    def _only(self, items: list[Item], index: int, modality: str) -> Item:
        if len(items) != 1:
            seen = f"{len(items)} segments of" if items else "no"
            raise DataError(f"{self.path}: example {self.name(index)!r} has {seen} {modality}")
        return items[0]

    def _row(self, column: str, index: int) -> NDArray[Any]:
        found, row = self._table.at(column, index)
        return self._table.check(found.row(row))

    def _items(self, modality: str, index: int, encoded: bool = False) -> list[Item]:
        """What an example has of a modality."""
        table, column = self._encoded(modality) if encoded else (self._table, modality)
        found, row = table.at(column, index)
        return [_item(table.check(values), encoded) for values in found.items(row)]

    def _encoded(self, modality: str) -> tuple[Table, str]:
        """The table and column with a modality's ids; of other than text, the modality itself."""
        encode = self.encoder(modality) if self._table.is_text(modality) else None
        if encode is None:
            return self._table, modality
        if ids_column(modality) in self._table.names:
            return self._table, ids_column(modality)
        if modality not in self._made:
            # Written before ids stood beside their text: all of it is encoded, once.
            self._made[modality] = MemoryTable(modality, self._encode_all(modality, encode))
        return self._made[modality], modality

    def _encode_all(self, modality: str, encode: Encode) -> Ragged:
        ids: list[NDArray[Any]] = []
        for index in range(len(self)):
            items = self._items(modality, index)
            ids.append(np.array(encode(str(items[0])) if items else [], np.uint32))
        return Ragged.packed(ids, self._table.counts(modality) > 0)

    @cached_property
    def _made(self) -> dict[str, MemoryTable]:
        return {}

    @cached_property
    def _table(self) -> Table:
        table: Table
        if self.path.suffix == ".parquet":
            table = ParquetTable(self.path, self.checksums)
        else:
            table = MappedTable(self.path, self.checksums or self.path.with_suffix(".crc32"))
        expected = [*OWN_COLUMNS, *([SEGMENTS] if self.documents else []), *self.modalities]
        if not set(expected) <= set(table.names) or table.n_rows != len(self):
            raise DataError(
                f"{self.path}: {table.n_rows} rows of {list(table.names)}, expected {len(self)} of {expected}"
            )
        return table


def _item(values: NDArray[Any], encoded: bool = False) -> Item:
    """An item as it is stored: bytes of text, ids without a sign, 16-bit samples, or floats."""
    if values.dtype == np.uint8 and not encoded:
        return _text(values)
    if values.dtype == np.int16:
        wave: NDArray[np.float32] = np.divide(values, np.float32(FULL_SCALE), dtype=np.float32)
        return wave
    floats = np.issubdtype(values.dtype, np.floating)
    return values.astype(np.float32) if floats else values.astype(np.int64)


def _text(values: NDArray[Any]) -> str:
    return values.tobytes().decode()
