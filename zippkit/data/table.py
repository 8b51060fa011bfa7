"""Examples as rows of Parquet files. The only file that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    """Modality to text or ids, without begin and end; those that the example has."""


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
        there = [name for name in self.modalities if self._columns[name][index].is_valid]
        return Example(id_, speaker, seconds, {name: _item(self._columns[name], index) for name in there})

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def lengths(self, modality: str) -> NDArray[np.int64]:
        """(len(self),) ids per example; of a text modality, UTF-8 bytes. Frames not counted; no row is read singly.

        An example that lacks the modality counts 0.

        Raises:
            DataError: no such modality.
        """
        import pyarrow.compute as pc

        column = self._column(modality)
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
        if modality not in self.modalities:
            raise DataError(f"{self.path}: no modality {modality!r}{did_you_mean(modality, self.modalities)}")
        return self._columns[modality]

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


@dataclass
class Columns:
    """The modalities of a file's rows, and what is found out about them as the rows are written."""

    is_text: dict[str, bool]
    """Modality to whether it is text rather than ids."""
    optional: frozenset[str]
    """Modalities that an example may lack."""
    n_examples: int = 0
    n_rows: dict[str, int] = field(init=False)
    """Examples that have the modality."""
    largest: dict[str, int | None] = field(init=False)
    """Its largest id, -1 if there is none; None for text."""

    def __post_init__(self) -> None:
        self.n_rows = dict.fromkeys(self.is_text, 0)
        self.largest = {name: None if text else -1 for name, text in self.is_text.items()}

    def add(self, example: Example) -> None:
        """Check one example against the others.

        Raises:
            DataError: a modality too few or too many, text for ids, or ids that cannot be stored.
        """
        kinds = {name: isinstance(item, str) for name, item in example.items.items()}
        if kinds != {name: text for name, text in self.is_text.items() if name in kinds or name not in self.optional}:
            expected = f"expected {_told(self.is_text)}"
            whence = (
                f", {_some(self.optional)} only where there is any" if self.optional else " as in the first example"
            )
            raise DataError(f"example {example.id!r}: {_told(kinds)}, {expected}{whence}")
        if not kinds:
            raise DataError(f"example {example.id!r} has none of {_some(self.is_text)}")
        self.n_examples += 1
        for name, text in kinds.items():
            self.n_rows[name] += 1
            if not text:
                self._add_ids(example.id, name, np.asarray(example.items[name]))

    def _add_ids(self, example: str, name: str, ids: NDArray[np.integer]) -> None:
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or (ids.size and ids.min() < 0):
            raise DataError(f"example {example!r}: {name} is {ids.dtype}{ids.shape}, expected ids in one dimension")
        largest = max(self.largest[name] or 0, int(ids.max(initial=-1)))
        if largest > np.iinfo(np.uint16).max:
            raise DataError(f"example {example!r}: {name} has id {largest}, expected at most 65535")
        self.largest[name] = largest


def write_rows(path: Path, examples: Iterable[Example], optional: Mapping[str, bool] | None = None) -> Columns:
    """Write one Parquet file.

    Args:
        optional: modalities that an example may lack, and whether each is text; all others are as in the first example.

    Raises:
        DataError: no examples, equal ids, modalities that differ between examples, or ids outside 0 to 65535.
    """
    import pyarrow.parquet

    stream = iter(examples)
    first = next(stream, None)
    if first is None:
        raise DataError(f"{path.name}: no examples")
    is_text = dict(optional or {}) | {name: isinstance(item, str) for name, item in first.items.items()}
    if not is_text or not is_text.keys().isdisjoint(_OWN_COLUMNS):
        raise DataError(f"{path.name}: modalities {sorted(is_text)}, expected some, and none of {_OWN_COLUMNS}")
    own = {"id": pyarrow.string(), "speaker": pyarrow.string(), "seconds": pyarrow.float32()}
    types = {name: pyarrow.string() if text else pyarrow.list_(pyarrow.uint16()) for name, text in is_text.items()}
    schema = pyarrow.schema(list({**own, **types}.items()))
    columns = Columns(is_text, frozenset(optional or ()))
    seen: set[str] = set()
    rows = (_row(example, columns, seen) for example in chain([first], stream))
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while chunk := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema))
    return columns


def _row(example: Example, columns: Columns, seen: set[str]) -> dict[str, object]:
    """The example as Parquet takes it, checked; a modality that it lacks is left out."""
    if example.id in seen:
        raise DataError(f"two examples have the id {example.id!r}")
    seen.add(example.id)
    columns.add(example)
    return {"id": example.id, "speaker": example.speaker, "seconds": example.seconds, **example.items}


def _told(is_text: dict[str, bool]) -> str:
    return ", ".join(f"{name} as {'text' if text else 'ids'}" for name, text in sorted(is_text.items())) or "nothing"


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
