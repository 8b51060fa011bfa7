"""Every record of a corpus, by the name of its reader, and what is wrong with each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from zippkit.data.readers.array_check import with_trouble
from zippkit.data.readers.base import Reader, open_reader
from zippkit.data.records import Record
from zippkit.errors import DataError, did_you_mean

Kind: TypeAlias = str | Reader[Any] | Callable[..., Iterable[Record]]
"""A reader's name, a reader, or a function that is called with the root and the options."""


def read(kind: str, root: str | Path, **options: Any) -> Iterator[Record]:
    """The records of a corpus: ``read("fsdd", "path/to/it", max_digits=3)``.

    Raises:
        DataError: no such reader, wrong options, or a corpus that it cannot read.
    """
    return open_reader(kind, options).read(Path(root))


def records_of(kind: Kind, root: str | Path, options: Mapping[str, Any] | None = None) -> list[Record]:
    """Every record of a corpus; ``trouble`` says of each whether its arrays go with those of the others.

    Raises:
        DataError: no such reader, wrong options, a corpus that it cannot read, or no records, and then where it looked.
    """
    if isinstance(kind, str | Reader):
        reader = open_reader(kind, options) if isinstance(kind, str) else kind
        records, looked = list(reader.read(Path(root))), f"; looked for {reader.layout}"
    else:
        _check_arguments(kind, options or {})
        records, looked = list(kind(Path(root), **(options or {}))), ""
    if not records:
        raise DataError(f"{root}: no records of the kind {kind_name(kind)}{looked}")
    return with_trouble(records)


def kind_name(kind: Kind) -> str:
    """The name by which messages and manifests speak of a reader."""
    return kind if isinstance(kind, str) else getattr(kind, "__name__", type(kind).__name__)


def _check_arguments(function: Callable[..., Iterable[Record]], options: Mapping[str, Any]) -> None:
    """Compare the options with the arguments of a function, whose types are its own affair."""
    accepted = list(inspect.signature(function).parameters)[1:]
    wrong = [f"{name!r}{did_you_mean(name, accepted)}" for name in options if name not in accepted]
    if wrong:
        raise DataError("\n".join(f"reader {kind_name(function)} has no option {name}" for name in wrong))
