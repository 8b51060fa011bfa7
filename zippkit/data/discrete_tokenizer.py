"""What tokenizers of sound and of frames have in common: ids from 0, then begin and end; settings, a file, training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from zippkit.errors import DataError
from zippkit.spec.kinds import Strict
from zippkit.spec.registry import TOKENIZERS, implementation

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with (done, total, what); a total of 0 means that it is not known."""

Ids: TypeAlias = Sequence[int] | NDArray[np.integer]


class DiscreteTokenizer(ABC):
    """Something continuous to unit ids; ids run from 0, then come ``begin`` and ``end``."""

    Config: ClassVar[type[Strict]]
    """Its settings: what `zippkit prepare --tokenizer NAME=KIND NAME.key=value` takes."""
    kind: ClassVar[str]
    """The name of its entry point, which a dataset's manifest keeps."""
    suffix: ClassVar[str] = ".safetensors"
    """Of the file that ``save`` writes."""

    @property
    @abstractmethod
    def begin(self) -> int:
        """Id that opens a segment; ids below it are units."""

    @property
    def end(self) -> int:
        """Id that closes a segment."""
        return self.begin + 1

    @property
    def vocab_size(self) -> int:
        """Units, begin and end."""
        return self.begin + 2

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what an id means."""

    @classmethod
    @abstractmethod
    def train(
        cls, examples: Iterable[Any], config: Any = None, seed: int = 0, progress: Progress | None = None
    ) -> Self:
        """A tokenizer made from examples, read once; one that needs no training may leave them unread."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write one file."""

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing, cut short, or something else.
        """

    def units_of(self, ids: Ids) -> NDArray[np.int64]:
        """``ids`` without begin and end.

        Raises:
            DataError: an id is no unit.
        """
        units: NDArray[np.int64] = np.asarray(ids, dtype=np.int64)
        units = units[(units != self.begin) & (units != self.end)]
        wrong = np.flatnonzero((units < 0) | (units >= self.begin))
        if wrong.size:
            raise DataError(
                f"unit at index {wrong[0]} is {units[wrong[0]]}, expected 0 to {self.begin - 1}, or a frame id"
            )
        return units


Kind = TypeVar("Kind", bound=DiscreteTokenizer)


def registered(kind: str, base: type[Kind], what: str) -> type[Kind]:
    """The class of a registered kind.

    Args:
        kind: its name.
        base: what it must be.
        what: the tokenizers that are asked for, for messages.

    Raises:
        UnknownKindError: nobody registers it; names the nearest.
        DataError: what is registered is no such tokenizer, or calls itself otherwise.
    """
    found = implementation(TOKENIZERS, kind)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise DataError(f"tokenizer kind {kind!r} is {found!r}, expected a subclass of {base.__name__}, for {what}")
    if found.kind != kind:
        raise DataError(f"tokenizer kind {kind!r}: its class says kind {found.kind!r}; give both the same name")
    return found
