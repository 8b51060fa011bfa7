"""Rows of CSV, TSV, JSONL and Parquet files, one at a time, each with the place where it stands."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zippkit.errors import DataError, did_you_mean
from zippkit.system.extras import require
from zippkit.system.files import parse_json

Form = Callable[[Path], tuple[list[str], Iterator["Row"]]]
"""Column names of a file, and its rows."""


@dataclass(frozen=True)
class Row:
    """One row, or why it cannot be used."""

    number: int
    """From 1 on: of the line, of the row where there are no lines."""
    values: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""


def found_files(root: Path, suffixes: Collection[str]) -> list[Path]:
    """The file itself, or the files of these suffixes in the folder.

    Raises:
        DataError: no such file or folder, or none of these suffixes.
    """
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    files = [root] if root.is_file() else sorted(p for p in root.iterdir() if p.suffix.lower() in suffixes)
    if not files or files[0].suffix.lower() not in suffixes:
        raise DataError(f"{root}: no file here ends in {', '.join(sorted(suffixes))}")
    return files


def check_columns(columns: Mapping[Path, Collection[str]], wanted: Collection[str]) -> None:
    """Raise DataError unless every file has every column that is wanted; names each that is missing."""
    missing = [
        f"{file}: no column {name!r}{did_you_mean(name, there)}"
        for file, there in columns.items()
        for name in wanted
        if name not in there
    ]
    if missing:
        raise DataError("\n".join(missing))


def delimited(
    path: Path, delimiter: str, quoted: bool = True, names: Iterable[str] = ()
) -> tuple[list[str], Iterator[Row]]:
    """Column names and rows of a text with a separator; ``names`` are the columns of a file without a heading."""
    columns = list(names)

    def lines() -> Iterator[tuple[int, list[str]]]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
            try:
                yield from ((reader.line_num, cells) for cells in reader)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: not UTF-8 ({error.reason})") from None
            except csv.Error as error:
                fix = "; write long cells as JSONL or Parquet, or as .npy files" if "limit" in str(error) else ""
                raise DataError(f"{path}:{reader.line_num}: {error}{fix}") from None

    def rows() -> Iterator[Row]:
        for place, (number, cells) in enumerate(lines()):
            if not cells or (place == 0 and not names):
                continue
            if len(cells) > len(columns):
                yield Row(number, trouble=f"{len(cells)} cells, expected {len(columns)}")
            else:
                yield Row(number, dict(zip(columns, cells, strict=False)))

    if not columns:
        columns = next(lines(), (0, []))[1]
    return columns, rows()


def json_lines(path: Path) -> tuple[list[str], Iterator[Row]]:
    """Keys of any line, in their order, and rows; a line that is no object is a row with trouble."""

    def rows() -> Iterator[Row]:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_row(number, line)

    return list(dict.fromkeys(key for row in rows() for key in row.values)), rows()


def _json_row(number: int, line: bytes) -> Row:
    try:
        values = parse_json(line)
    except ValueError as error:
        return Row(number, trouble=f"not JSON ({error})")
    if not isinstance(values, dict):
        return Row(number, trouble=f"a {type(values).__name__}, expected an object with keys")
    return Row(number, values)


def parquet(path: Path) -> tuple[list[str], Iterator[Row]]:
    """Column names and rows of a Parquet file, of which a few are in memory at a time."""
    require("pyarrow")
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None

    def rows() -> Iterator[Row]:
        number = 0
        for batch in file.iter_batches(256):
            for values in batch.to_pylist():
                number += 1
                yield Row(number, values)

    return list(file.schema_arrow.names), rows()


FORMS: dict[str, Form] = {
    ".csv": lambda path: delimited(path, ","),
    ".tsv": lambda path: delimited(path, "\t"),
    ".jsonl": json_lines,
    ".parquet": parquet,
}
"""Suffix to how such a file is read."""
