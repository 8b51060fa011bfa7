"""The reader protocol: a corpus as it lies on disk to records. Kinds are entry points of `zippkit.readers`.

A package adds a kind with one class and one line::

    [project.entry-points."zippkit.readers"]
    my_corpus = "my_package:MyCorpus"
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from zippkit.data.records import Record
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict
from zippkit.spec.registry import READERS, UnknownKindError, implementation
from zippkit.spec.validation import validate

Options = TypeVar("Options", bound=Strict)


class Reader(ABC, Generic[Options]):
    """Finds the examples of a corpus; made by `open_reader` from its Config.

    Sound files and pictures are named, not opened. A record that cannot be used is yielded all the same and says why
    in its ``trouble``, so that all of them are told at once; what is wrong with the corpus as a whole is raised.
    """

    Config: ClassVar[type[Strict]] = Strict
    """Its options: what `zippkit prepare KIND ROOT key=value` takes."""
    layout: ClassVar[str]
    """Where it looks below the root, such as ``<split>/<id>.wav``; told where nothing was found."""
    needs_root: ClassVar[bool] = True
    """False for a corpus that comes with a library."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def read(self, root: Path) -> Iterator[Record]:
        """Yield every record, in an order that depends on names and options alone.

        Raises:
            DataError: the corpus cannot be read: no such folder, a column is missing.
        """


def open_reader(kind: str, options: Mapping[str, Any] | None = None) -> Reader[Any]:
    """A registered reader.

    Raises:
        DataError: nobody registers it (names the nearest, and says where it looked), what is registered is no reader,
            or options are wrong, all of them at once.
    """
    found = reader_class(kind)
    config, complaints = validate(found.Config, dict(options or {}))
    if config is None:
        told = (f"reader {kind}: {'.'.join(map(str, place)) or 'options'}: {message}" for place, message in complaints)
        raise DataError("\n".join(told))
    return found(config)


def reader_class(kind: str) -> type[Reader[Any]]:
    """The class of a registered kind; raises as `open_reader`."""
    try:
        found = implementation(READERS, kind)
    except UnknownKindError as error:
        looked = f"looked among the entry points `{READERS}` of the installed packages, which `zippkit readers` lists"
        raise DataError(f"{error} ({looked})") from None
    if not (isinstance(found, type) and issubclass(found, Reader)):
        raise DataError(f"reader kind {kind!r} is {found!r}, expected a subclass of Reader")
    return found


def existing_folder(root: Path) -> Path:
    """``root``, if it is a folder.

    Raises:
        DataError: it is not there, or it is a file.
    """
    if root.is_file():
        raise DataError(f"{root}: a file; expected the folder of the corpus")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    return root


def read_text(path: Path) -> str | None:
    """What a text file says, without white space around it; None if there is no such file.

    Raises:
        DataError: it is not UTF-8.
    """
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
