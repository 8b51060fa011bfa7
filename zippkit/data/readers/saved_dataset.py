"""Folders that Hugging Face's `datasets` saved (`save_to_disk`); sounds and pictures are read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from zippkit.data.readers.base import Reader, existing_folder
from zippkit.data.readers.cells import Cell, Content, cells_of
from zippkit.data.readers.drawn_splits import USUAL
from zippkit.data.readers.table import RowOptions, RowReader
from zippkit.data.readers.table_files import Row
from zippkit.data.records import Picture, Record, Sound, Source
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict
from zippkit.system.extras import require


@dataclass(frozen=True)
class SavedFile:
    """The file in a cell of sound or pictures."""

    rows: Any
    """The split, as a `datasets.Dataset` that decodes nothing."""
    index: int
    column: str
    name: str

    def read_bytes(self) -> bytes:
        """Return the content, from the dataset or from the file that it names.

        Raises:
            DataError: there is neither.
        """
        cell = self.rows[self.index][self.column]
        if cell.get("bytes") is not None:
            content: bytes = cell["bytes"]
            return content
        path = Path(cell.get("path") or "")
        if not path.is_file():
            raise DataError(f"{self}: no such file: {path}")
        return path.read_bytes()

    def __str__(self) -> str:
        return self.name


class SavedDataset(Reader[RowOptions]):
    """A `DatasetDict` with its own splits, or a single `Dataset`, whose splits are drawn."""

    Config: ClassVar[type[Strict]] = RowOptions
    layout: ClassVar[str] = "dataset_dict.json or dataset_info.json, as datasets' save_to_disk writes them"

    def read(self, root: Path) -> Iterator[Record]:
        splits = _loaded(existing_folder(root), self.layout)
        tables = {split or "rows": rows for split, rows in splits.items()}
        first = next(iter(tables))
        kinds = {name: _content(feature) for name, feature in tables[first].features.items()}
        chosen = self.options.chosen(list(kinds), root / first)
        cells = cells_of({name: _typed(cell, kinds) for name, cell in chosen.items()})
        self.options.check({root / split: list(rows.features) for split, rows in tables.items()}, cells)
        for split, rows in splits.items():
            yield from self._records(split, rows, cells)

    def _records(self, split: str, rows: Any, cells: Mapping[str, Cell]) -> Iterator[Record]:
        filed = {name: cell for name, cell in cells.items() if cell.kind in ("audio", "image")}
        plain = {name: cell for name, cell in cells.items() if name not in filed}
        own = self.options.own_columns(rows.features)
        name = split or "rows"
        reader = RowReader(self.options, plain, own, name, USUAL.get(split, split) or None, Path())
        light = rows.select_columns(sorted({*(cell.column for cell in plain.values()), *own.values()}))
        there = {cell.column: rows.data.column(cell.column).is_valid() for cell in filed.values()}
        for index in range(len(rows)):
            files: dict[str, Source] = {}
            for modality, cell in filed.items():
                if there[cell.column][index].as_py():
                    file = SavedFile(rows, index, cell.column, f"{name}[{index}].{cell.column}")
                    files[modality] = Sound((file,)) if cell.kind == "audio" else Picture(file)
            yield reader.record(Row(index + 1, light[index] if light.column_names else {}), files)


def _typed(cell: str | Cell, kinds: Mapping[str, Content | None]) -> Cell:
    cell = Cell(column=cell) if isinstance(cell, str) else cell
    return cell if cell.kind else cell.model_copy(update={"kind": kinds.get(cell.column)})


def _loaded(root: Path, layout: str) -> dict[str, Any]:
    """Split to its rows, nothing decoded; a dataset without splits is under an empty name."""
    require("datasets")
    import datasets

    if not any((root / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        raise DataError(f"{root}: not a dataset that `datasets` saved; looked for {layout}")
    try:
        found = datasets.load_from_disk(str(root))
    except Exception as error:
        # The library's readers raise whatever a broken folder makes of them.
        raise DataError(f"{root}: datasets cannot read it ({type(error).__name__}: {error})") from None
    splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
    return {split: _undecoded(rows) for split, rows in splits.items()}


def _undecoded(rows: Any) -> Any:
    import datasets

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Audio | datasets.Image):
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows.with_format(None)


def _content(feature: Any) -> Content | None:
    """What a column of this feature holds, as far as it tells: integers in a list are ids, floats are frames."""
    import datasets

    if isinstance(feature, datasets.Audio | datasets.Image):
        return "audio" if isinstance(feature, datasets.Audio) else "image"
    if isinstance(feature, datasets.Value):
        return "text" if feature.dtype in ("string", "large_string") else None
    listed = False
    while (inner := getattr(feature, "feature", None)) is not None:
        feature, listed = inner, True
    dtype = str(getattr(feature, "dtype", ""))
    listed = listed or hasattr(feature, "shape")
    if not listed:
        return None
    return "features" if dtype.startswith("float") else "ids" if "int" in dtype else None
