"""Examples written as rows of an Arrow file, and checked against each other on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zippkit.data.block_checksums import write_block_checksums
from zippkit.data.forms import Form, form_of, offsets_of
from zippkit.data.table import OWN_COLUMNS, SEGMENTS, Example, Item, ids_column
from zippkit.errors import DataError
from zippkit.system.extras import require

if TYPE_CHECKING:
    import pyarrow

_ROWS_AT_ONCE = 2**14
_BYTES_AT_ONCE = 2**25
"""Rows stand in batches of about so many bytes, which are held in memory while they are written."""


@dataclass
class Columns:
    """The modalities of a file's rows, and what is found out about them as the rows are written."""

    forms: dict[str, Form]
    """Modality to how it is stored."""
    optional: frozenset[str]
    """Modalities that an example may lack."""
    documents: bool
    """Whether rows are documents, which may hold any modality any number of times."""
    n_examples: int = 0
    n_rows: dict[str, int] = field(init=False)
    """Examples that have the modality."""
    largest: dict[str, int] = field(init=False)
    """The largest id of each modality of ids, -1 if there is none."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Smallest and largest value of each modality of features."""

    def __post_init__(self) -> None:
        self.n_rows = dict.fromkeys(self.forms, 0)
        self.largest = {name: -1 for name, form in self.forms.items() if form.kind == "ids"}

    def add(self, example: Example) -> None:
        """Check one example against the others.

        Raises:
            DataError: a modality too few or too many, text for ids, or what cannot be stored.
        """
        if (example.segments is not None) != self.documents:
            seen, others = ("a document", "are none") if example.segments is not None else ("no document", "are")
            raise DataError(f"example {example.id!r} is {seen}, and those before it {others}")
        pairs = pairs_of(example)
        kinds = {name: self._kind(name, item) for name, item in pairs}
        optional = self.forms.keys() if self.documents else self.optional
        expected = {name: form.kind for name, form in self.forms.items() if name in kinds or name not in optional}
        if kinds != expected:
            told = f"expected {_told({name: form.kind for name, form in self.forms.items()})}"
            whence = f", {_some(optional)} only where there is any" if optional else " as in the first example"
            raise DataError(f"example {example.id!r}: {_told(kinds)}, {told}{whence}")
        if not pairs:
            raise DataError(f"example {example.id!r} has none of {_some(self.forms)}")
        self.n_examples += 1
        for name in kinds:
            self.n_rows[name] += 1
        for name, item in pairs:
            try:
                self.forms[name].check(name, item)
            except DataError as error:
                raise DataError(f"example {example.id!r}: {error}") from None
            self._note(name, item)

    def _kind(self, name: str, item: Item) -> str:
        """Kind of an item; what an array is is the dataset's to say, and whether it fits is looked at afterwards."""
        known = self.forms.get(name)
        return known.kind if known and known.kind != "text" and not isinstance(item, str) else form_of(item).kind

    def _note(self, name: str, item: Item) -> None:
        form = self.forms[name]
        if form.kind == "ids":
            self.largest[name] = max(self.largest[name], 0, int(np.max(np.asarray(item), initial=-1)))
        elif form.kind == "features" and np.size(np.asarray(item)):
            least, most = self.ranges.get(name, (np.inf, -np.inf))
            values = np.asarray(item, np.float32)
            self.ranges[name] = min(least, float(values.min())), max(most, float(values.max()))


def pairs_of(example: Example) -> tuple[tuple[str, Item], ...]:
    """(modality, item) of an example or a document, in order."""
    return tuple(example.items.items()) if example.segments is None else example.segments


def write_rows(
    path: Path, checksums: Path, examples: Iterable[Example], forms: Mapping[str, Form], partial: bool
) -> Columns:
    """Write one Arrow file, and its checksums.

    Args:
        path: the file.
        checksums: the file of its checksums.
        examples: its rows, read once.
        forms: modalities that are known beforehand, such as those of waveforms; others are as in the first example.
        partial: an example may lack those that are known beforehand.

    Raises:
        DataError: no examples, equal ids, modalities that differ between examples, or items that cannot be stored.
    """
    require("pyarrow")
    import pyarrow

    stream = iter(examples)
    first = next(stream, None)
    if first is None:
        raise DataError(f"{path.name}: no examples")
    columns = _columns(first, forms, partial, path.name)
    schema = pyarrow.schema(list(_types(columns).items()))
    starts, ends = [], []
    seen: set[str] = set()
    checked = (_checked(example, columns, seen) for example in chain([first], stream))
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
        for chunk in _chunks(checked):
            starts.append(sink.tell())
            writer.write_batch(pyarrow.record_batch(_arrays(chunk, columns), schema))
            ends.append(columns.n_examples)
    with path.open("rb") as file:
        # The first batch comes behind the schema, which is written with it: a mark, its length, and itself.
        starts[0] = 16 + int.from_bytes(file.read(16)[12:], "little")
    write_block_checksums(path, checksums, starts, ends)
    return columns


def _columns(first: Example, forms: Mapping[str, Form], partial: bool, where: str) -> Columns:
    documents = first.segments is not None
    found = {name: _form(forms.get(name), item) for name, item in pairs_of(first)}
    columns = Columns(
        (dict(forms) if partial or documents else {}) | found, frozenset(forms if partial else ()), documents
    )
    taken = [*OWN_COLUMNS, SEGMENTS, *map(ids_column, columns.forms)]
    if not columns.forms or not columns.forms.keys().isdisjoint(taken):
        raise DataError(f"{where}: modalities {sorted(columns.forms)}, expected some, and none of {tuple(taken)}")
    return columns


def _form(known: Form | None, item: Item) -> Form:
    return known if known and (known.kind == "text") == isinstance(item, str) else form_of(item)


def _types(columns: Columns) -> dict[str, pyarrow.DataType]:
    import pyarrow

    types = {"id": pyarrow.string(), "speaker": pyarrow.string(), "seconds": pyarrow.float32()}
    if columns.documents:
        types[SEGMENTS] = pyarrow.list_(pyarrow.string())
    for name, form in columns.forms.items():
        types[name] = form.type_of()
        if form.encode is not None:
            types[ids_column(name)] = form.ids_form().type_of()
    plain = (*OWN_COLUMNS, SEGMENTS)
    return {n: pyarrow.list_(t) if columns.documents and n not in plain else t for n, t in types.items()}


def _checked(example: Example, columns: Columns, seen: set[str]) -> Example:
    if example.id in seen:
        raise DataError(f"two examples have the id {example.id!r}")
    seen.add(example.id)
    columns.add(example)
    return example


def _chunks(examples: Iterator[Example]) -> Iterator[list[Example]]:
    """Examples that are written together."""
    chunk: list[Example] = []
    n_bytes = 0
    for example in examples:
        chunk.append(example)
        n_bytes += sum(len(item) if isinstance(item, str) else np.asarray(item).nbytes for _, item in pairs_of(example))
        if len(chunk) == _ROWS_AT_ONCE or n_bytes >= _BYTES_AT_ONCE:
            yield chunk
            chunk, n_bytes = [], 0
    if chunk:
        yield chunk


def _arrays(chunk: list[Example], columns: Columns) -> list[pyarrow.Array]:
    """The chunk's columns, in the schema's order."""
    import pyarrow

    arrays = [
        pyarrow.array([example.id for example in chunk], pyarrow.string()),
        pyarrow.array([example.speaker for example in chunk], pyarrow.string()),
        pyarrow.array([example.seconds for example in chunk], pyarrow.float32()),
    ]
    if columns.documents:
        names = [[name for name, _ in pairs_of(example)] for example in chunk]
        arrays.append(pyarrow.array(names, pyarrow.list_(pyarrow.string())))
    for name, form in columns.forms.items():
        rows = [[item for n, item in pairs_of(example) if n == name] for example in chunk]
        arrays.append(_column(form, [[form.stored(item) for item in row] for row in rows], columns.documents))
        if form.encode is not None:
            encoded = [[_ids(example.id, form, item) for item in row] for example, row in zip(chunk, rows, strict=True)]
            arrays.append(_column(form.ids_form(), encoded, columns.documents))
    return arrays


def _column(form: Form, rows: list[list[Any]], documents: bool) -> pyarrow.Array:
    import pyarrow

    items = [item for row in rows for item in row]
    if not documents:
        return form.column(items, [bool(row) for row in rows])
    return pyarrow.ListArray.from_arrays(offsets_of(list(map(len, rows))), form.column(items, [True] * len(items)))


def _ids(example: str, form: Form, text: Item) -> Any:
    assert form.encode is not None
    try:
        return np.array(form.encode(str(text)), form.ids_form().dtype)
    except DataError as error:
        raise DataError(f"example {example!r}: {error}") from None


def _told(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{name} as {kind}" for name, kind in sorted(kinds.items())) or "nothing"


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
