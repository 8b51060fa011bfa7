"""Text alone: a file or a folder of files, cut into paragraphs, lines or pieces of so many words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from zippkit.data.readers.base import Reader, read_text
from zippkit.data.readers.drawn_splits import DrawnSplits, named_split
from zippkit.data.records import Record
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict

_SENTENCE_ENDS = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)])\s+")  # noqa: RUF001 (books have such quotes)


class TextConfig(DrawnSplits):
    """Options of the reader of plain text."""

    by: Literal["paragraph", "line", "file"] = Field(
        "paragraph", description="What an example is; paragraphs have an empty line between them, and become one line."
    )
    max_words: int | None = Field(None, gt=0, description="Longer ones are cut, after so many words at the latest.")
    pattern: str = Field("*.txt", description="Names of the files in a folder; folders within it are looked through.")
    files: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Split to the files that are in it, as patterns: {test: ['*_the-time-machine.txt']}. Others are in "
        "the split that their name, or their folder's, is (train, dev, test), or each example is drawn by `fractions`.",
    )


class PlainText(Reader[TextConfig]):
    """Plain text in UTF-8."""

    Config: ClassVar[type[Strict]] = TextConfig
    layout: ClassVar[str] = "a text file, or *.txt (or another `pattern`) in a folder and those within it"

    def read(self, root: Path) -> Iterator[Record]:
        if not root.exists():
            raise DataError(f"{root}: no such file or folder")
        files = [root] if root.is_file() else sorted(p for p in root.rglob(self.options.pattern) if p.is_file())
        base = root.parent if root.is_file() else root
        self._check_patterns(root, files)
        for file in files:
            place, split = file.relative_to(base), self._split(file.relative_to(base))
            for number, text in enumerate(self._pieces(read_text(file) or ""), 1):
                id_ = f"{place.with_suffix('').as_posix()}-{number:06d}"
                yield Record(id_, split or self.options.split_of(text), {"text": text})

    def _check_patterns(self, root: Path, files: list[Path]) -> None:
        wrong = [
            f"{root}: files.{split}: no file is like {pattern!r}"
            for split, patterns in self.options.files.items()
            for pattern in patterns
            if not any(file.match(pattern) for file in files)
        ]
        if wrong:
            raise DataError("\n".join(wrong))

    def _split(self, place: Path) -> str | None:
        for split, patterns in self.options.files.items():
            if any(place.match(pattern) for pattern in patterns):
                return split
        return named_split(place.parts[0]) if len(place.parts) > 1 else named_split(place.stem)

    def _pieces(self, text: str) -> Iterator[str]:
        parts = {"file": [text], "line": text.splitlines(), "paragraph": re.split(r"\n\s*\n", text)}[self.options.by]
        for part in parts:
            whole = " ".join(part.split()) if self.options.by == "paragraph" else part.strip()
            if self.options.max_words is None:
                yield from [whole] if whole else []
            else:
                yield from cut(whole, self.options.max_words)


def cut(text: str, max_words: int) -> Iterator[str]:
    """Pieces of at most so many words: whole sentences as long as they fit, one that is longer cut between words."""
    piece: list[str] = []
    for sentence in _SENTENCE_ENDS.split(text):
        words = sentence.split()
        for start in range(0, len(words), max_words):
            more = words[start : start + max_words]
            if len(piece) + len(more) > max_words:
                yield " ".join(piece)
                piece = []
            piece += more
    if piece:
        yield " ".join(piece)
