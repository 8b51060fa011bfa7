"""Examples as rows of Parquet files. The only file that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zippkit.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pyarrow

Item: TypeAlias = str | NDArray[np.int64]
"""Text, or (U,) ids."""

_ROWS_AT_ONCE = 1024
_OWN_COLUMNS = ("id", "speaker", "seconds")


@dataclass(frozen=True, eq=False)
class Example:
    """One thing said (or shown), in each of its modalities."""

    id: str
    speaker: str
    seconds: float
    """Duration of the recording; 0 where there is none."""
    items: dict[str, Item] = field(default_factory=dict)
    """Modality to text or ids, without begin and end."""


@dataclass(frozen=True, eq=False)
class Split:
    """The examples of one Parquet file, by index; the file is read when the first is asked for."""

    path: Path
    modalities: tuple[str, ...]
    n_examples: int

    def __len__(self) -> int:
        return self.n_examples

    def __getitem__(self, index: int) -> Example:
        """The example at ``index``; ids come as int64.

        Raises:
            IndexError: there is none.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path.name} has {len(self)} examples, asked for index {index}")
        index %= len(self)
        id_, speaker, seconds = (self._columns[name][index].as_py() for name in _OWN_COLUMNS)
        return Example(id_, speaker, seconds, {name: _item(self._columns[name], index) for name in self.modalities})

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def lengths(self, modality: str) -> NDArray[np.int64]:
        """(len(self),) ids per example; of a text modality, UTF-8 bytes. Frames not counted; no row is read singly.

        Raises:
            DataError: no such modality.
        """
        import pyarrow.compute as pc

        if modality not in self.modalities:
            raise DataError(f"{self.path}: no modality {modality!r}{did_you_mean(modality, self.modalities)}")
        column = self._columns[modality]
        counted = pc.binary_length(column) if _is_text(column) else pc.list_value_length(column)
        lengths: NDArray[np.int64] = counted.to_numpy().astype(np.int64)
        return lengths

    @cached_property
    def _columns(self) -> dict[str, pyarrow.Array]:
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: not a readable Parquet file ({' '.join(str(error).split())})") from None
        missing = [name for name in (*_OWN_COLUMNS, *self.modalities) if name not in table.column_names]
        if missing or len(table) != len(self):
            expected = [*_OWN_COLUMNS, *self.modalities]
            raise DataError(
                f"{self.path}: {len(table)} rows of {table.column_names}, expected {len(self)} of {expected}"
            )
        # One chunk per column makes access by index a lookup instead of a search.
        return {name: table.column(name).combine_chunks() for name in table.column_names}


def _is_text(column: pyarrow.Array) -> bool:
    return str(column.type) == "string"


def _item(column: pyarrow.Array, index: int) -> Item:
    if _is_text(column):
        text: str = column[index].as_py()
        return text
    # `as_py` on a list would make a Python integer of each id.
    ids: NDArray[np.int64] = column[index].values.to_numpy().astype(np.int64)
    return ids


def write_rows(path: Path, examples: Iterable[Example]) -> tuple[int, dict[str, int | None]]:
    """Write one Parquet file.

    Returns:
        the number of rows, and each modality's largest id (-1 if all are empty); None for text.

    Raises:
        DataError: no examples, equal ids, modalities that differ between examples, or ids outside 0 to 65535.
    """
    import pyarrow.parquet

    stream = iter(examples)
    first = next(stream, None)
    if first is None:
        raise DataError(f"{path.name}: no examples")
    is_text = {name: isinstance(item, str) for name, item in first.items.items()}
    if not is_text or not is_text.keys().isdisjoint(_OWN_COLUMNS):
        raise DataError(f"{path.name}: modalities {sorted(is_text)}, expected some, and none of {_OWN_COLUMNS}")
    own = {"id": pyarrow.string(), "speaker": pyarrow.string(), "seconds": pyarrow.float32()}
    types = {name: pyarrow.string() if text else pyarrow.list_(pyarrow.uint16()) for name, text in is_text.items()}
    schema = pyarrow.schema(list({**own, **types}.items()))
    largest = {name: -1 for name, text in is_text.items() if not text}
    seen: set[str] = set()
    rows = (_row(example, is_text, seen, largest) for example in chain([first], stream))
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while chunk := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema))
    return len(seen), {name: largest.get(name) for name in is_text}


def _row(example: Example, is_text: dict[str, bool], seen: set[str], largest: dict[str, int]) -> dict[str, object]:
    """The example as Parquet takes it, checked; ``seen`` and ``largest`` are kept up."""
    if example.id in seen:
        raise DataError(f"two examples have the id {example.id!r}")
    seen.add(example.id)
    kinds = {name: isinstance(item, str) for name, item in example.items.items()}
    if kinds != is_text:
        raise DataError(f"example {example.id!r}: {_told(kinds)}, expected {_told(is_text)} as in the first example")
    for name, previous in largest.items():
        ids = np.asarray(example.items[name])
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or (ids.size and ids.min() < 0):
            raise DataError(f"example {example.id!r}: {name} is {ids.dtype}{ids.shape}, expected ids in one dimension")
        largest[name] = max(previous, int(ids.max(initial=-1)))
        if largest[name] > np.iinfo(np.uint16).max:
            raise DataError(f"example {example.id!r}: {name} has id {largest[name]}, expected at most 65535")
    return {"id": example.id, "speaker": example.speaker, "seconds": example.seconds, **example.items}


def _told(is_text: dict[str, bool]) -> str:
    return ", ".join(f"{name} as {'text' if text else 'ids'}" for name, text in sorted(is_text.items())) or "nothing"
