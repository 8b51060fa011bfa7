"""Tables: a row is an example, its columns are modalities, in CSV, TSV, JSONL or Parquet."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from zippkit.data.readers.base import Reader
from zippkit.data.readers.cells import BY_NAME, Cell, cells_of
from zippkit.data.readers.drawn_splits import USUAL, DrawnSplits, named_split
from zippkit.data.readers.table_files import FORMS, Row, check_columns, found_files
from zippkit.data.records import Record, Source
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict


class RowOptions(DrawnSplits):
    """Which columns of a table hold what."""

    columns: dict[str, str | Cell] | None = Field(
        None,
        description="Modality to its column, or to {column: ..., kind: ...} where the name does not tell the kind. "
        "Left out, the columns called text, speech (or audio) and image.",
    )
    id: str | None = Field(None, description="Column of ids; `id` where there is one, and otherwise rows are numbered.")
    speaker: str | None = Field(None, description="Column of speakers; `speaker` if there is one.")
    split: str | None = Field(
        None,
        description="Column of splits; `split` if there is one. Without, files named train, dev, test are splits, "
        "and rows of others are drawn by `fractions`: rows of the same text stay together.",
    )
    folder: str = Field("", description="Folder that paths are relative to, itself relative to the table's.")

    def own_columns(self, there: Collection[str]) -> dict[str, str]:
        """``id``, ``speaker`` and ``split`` to their columns, where there are such."""
        named = {"id": self.id, "speaker": self.speaker, "split": self.split}
        return {key: column or key for key, column in named.items() if column or key in there}

    def chosen(self, there: Sequence[str], place: Path) -> Mapping[str, str | Cell]:
        """Modality to its column.

        Raises:
            DataError: nobody says which columns to take, and none has a modality's name.
        """
        found = self.columns or {"speech" if name == "audio" else name: name for name in there if name in BY_NAME}
        if not found:
            raise DataError(
                f"{place}: nobody says which columns hold what; expected columns={{text: ..., speech: ...}} with "
                f"some of {', '.join(there) or 'none, for there are none'}"
            )
        return found

    def check(self, there: Mapping[Path, Collection[str]], cells: Mapping[str, Cell]) -> None:
        """Raise DataError unless every table has every column that the options or ``cells`` name."""
        named = [name for name in (self.id, self.speaker, self.split) if name]
        check_columns(there, [*(cell.column for cell in cells.values()), *named])


@dataclass(frozen=True)
class RowReader:
    """Makes records of the rows of one table."""

    options: RowOptions
    cells: Mapping[str, Cell]
    own: Mapping[str, str]
    """``id``, ``speaker`` and ``split`` to their columns."""
    name: str
    """Of the table: messages say it, and rows are numbered with it."""
    split: str | None
    """Of all its rows; None if it is drawn for each."""
    base: Path
    """Folder that paths are relative to."""

    def record(self, row: Row, files: Mapping[str, Source] | None = None) -> Record:
        """The record of a row and of ``files`` that belong to it; what is wrong with its cells is its trouble."""
        items: dict[str, Source] = {}
        place = f"{self.name}:{row.number}"
        trouble = [f"{place}: {row.trouble}"] if row.trouble else []
        for modality, cell in self.cells.items():
            try:
                source = cell.source(row.values.get(cell.column), self.base)
            except DataError as error:
                trouble.append(f"{place}: {cell.column}: {error}")
            else:
                items |= {} if source is None else {modality: source}
        items |= files or {}
        if not items and not trouble:
            trouble.append(f"{place}: nothing in the columns that it is read from")
        id_ = self._own(row, "id") or f"{self.name}-{row.number:06d}"
        return Record(id_, self._split(row, items, id_), items, self._own(row, "speaker"), trouble=tuple(trouble))

    def _own(self, row: Row, key: str) -> str:
        value = row.values.get(self.own[key]) if key in self.own else None
        return "" if value is None else str(value).strip()

    def _split(self, row: Row, items: Mapping[str, Source], id_: str) -> str:
        told, text = self._own(row, "split"), items.get("text")
        drawn = self.options.split_of(text if isinstance(text, str) else id_)
        return USUAL.get(told, told) or self.split or drawn


class Table(Reader[RowOptions]):
    """One table, or a folder of them."""

    Config: ClassVar[type[Strict]] = RowOptions
    layout: ClassVar[str] = f"a file that ends in {', '.join(FORMS)}, or a folder of such files"

    def read(self, root: Path) -> Iterator[Record]:
        tables = {file: FORMS[file.suffix.lower()](file) for file in found_files(root, FORMS)}
        columns = {file: names for file, (names, _) in tables.items()}
        first = next(iter(columns))
        cells = cells_of(self.options.chosen(columns[first], first))
        self.options.check(columns, cells)
        for file, (names, rows) in tables.items():
            own, base = self.options.own_columns(names), file.parent / self.options.folder
            reader = RowReader(self.options, cells, own, file.stem, named_split(file.stem), base)
            yield from map(reader.record, rows)
