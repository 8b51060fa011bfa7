"""Sound files with a text file of the same name beside each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from zippkit.data.readers.base import Reader, existing_folder, read_text
from zippkit.data.readers.drawn_splits import DrawnSplits
from zippkit.data.records import Record, spoken
from zippkit.spec.kinds import Strict


class PairsConfig(DrawnSplits):
    """Options of the reader of pairs."""

    speaker: str | None = Field(None, description="Left out, the name of the folder that a file lies in.")


class Pairs(Reader[PairsConfig]):
    """Pairs of sound and text files. The split is drawn from the words, so readings of a prompt stay together."""

    Config: ClassVar[type[Strict]] = PairsConfig
    layout: ClassVar[str] = "<id>.wav or <id>.flac in any folder, each with its <id>.txt"

    def read(self, root: Path) -> Iterator[Record]:
        base = existing_folder(root)
        for path in sorted(p for p in base.rglob("*") if p.suffix.lower() in (".wav", ".flac")):
            text = read_text(path.with_suffix(".txt"))
            id_ = path.relative_to(base).with_suffix("").as_posix()
            speaker = self.options.speaker or path.parent.resolve().name
            yield spoken(id_, self.options.split_of(text or ""), (path,), text, speaker)
