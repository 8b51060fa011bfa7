"""What a reader yields of a corpus: records, and the sounds, pictures, texts and arrays that they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

SPLITS = ("train", "dev", "test")
"""The usual splits, in their order; one of several of a kind is named after it and a dash, as in ``test-other``."""

SPLIT_NAME = r"[^\W\d][\w-]*"
"""What a split may be called: letters, digits, underscores and dashes, a letter or an underscore first."""


class File(Protocol):
    """Contents that are read when they are needed: a `pathlib.Path`, or a cell of a table that holds a file's bytes."""

    @property
    def name(self) -> str:
        """File name, whose suffix tells the format."""

    def read_bytes(self) -> bytes:
        """Return the whole content."""


@dataclass(frozen=True)
class Sound:
    """A recording; the files are not opened yet."""

    files: tuple[File, ...]
    """Sound files that make it up, one after the other."""


@dataclass(frozen=True)
class Picture:
    """An image; the file is not opened yet."""

    file: File


Source: TypeAlias = Sound | Picture | str | NDArray[Any]
"""What a record holds of a modality.

A string is text. An integer array of shape (N,) holds ids, one of shape (height, width) grey levels. A float array of
shape (N, ...) holds features: N frames of a sensor, or of whatever else comes in frames of one shape.
"""


@dataclass(frozen=True)
class Record:
    """One example of a corpus: what is said, heard, seen or measured at once, or an interleaved document."""

    id: str
    """Unlike every other record's."""
    split: str
    items: Mapping[str, Source] = field(default_factory=dict)
    """Modality to what there is of it; one that is missing (a transcript, say) is absent."""
    speaker: str = ""
    segments: tuple[tuple[str, Source], ...] | None = None
    """(modality, source) in the document's order, and then ``items`` is empty; None where this is no document."""

    trouble: tuple[str, ...] = ()
    """Why it cannot be used, where the reader knows; nothing else is expected of such a record but its id."""

    def sources(self) -> Iterator[tuple[str, Source]]:
        """Modality and source of each item, or of each segment of a document."""
        yield from self.items.items() if self.segments is None else self.segments

    @property
    def text(self) -> str | None:
        """The text, if there is one."""
        text = self.items.get("text")
        return text if isinstance(text, str) else None

    @property
    def files(self) -> tuple[File, ...]:
        """The sound files of ``speech``."""
        speech = self.items.get("speech")
        return speech.files if isinstance(speech, Sound) else ()


def spoken(id_: str, split: str, files: tuple[File, ...], text: str | None, speaker: str = "") -> Record:
    """One utterance: its sound files, and its words, or None where the transcript is missing."""
    words: dict[str, Source] = {} if text is None else {"text": text}
    return Record(id_, split, words | {"speech": Sound(files)}, speaker)


def is_training(split: str) -> bool:
    """Whether tokenizers may learn from the split: ``train`` itself, or one of several such as ``train-clean-100``."""
    return split.partition("-")[0] == "train"


def in_order(splits: Iterable[str]) -> list[str]:
    """Names of splits: those for training first, then dev, test and others, each kind by name."""
    places = {name: place for place, name in enumerate(SPLITS)}
    return sorted(set(splits), key=lambda name: (places.get(name.partition("-")[0], len(places)), name))
