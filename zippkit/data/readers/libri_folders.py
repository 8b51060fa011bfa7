"""LibriSpeech, LibriTTS and Libri-Light: a folder per speaker, in it one per chapter or book."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from zippkit.data.readers.base import Reader, existing_folder, read_text
from zippkit.data.readers.drawn_splits import DrawnSplits
from zippkit.data.records import SPLITS, Record, Sound, spoken
from zippkit.errors import DataError, did_you_mean
from zippkit.spec.kinds import Strict


class LibriConfig(Strict):
    """Options of the readers of LibriSpeech and LibriTTS."""

    splits: Literal["conditions", "folders", "merged"] = Field(
        "conditions",
        description="conditions: `train` of all training folders, and `dev-clean`, `dev-other`, `test-clean` and "
        "`test-other`; folders: every folder is a split, also `train-clean-100`; merged: `train`, `dev` and `test`.",
    )
    folders: list[str] | None = Field(None, description="Folders to read, such as [train-clean-100]; all if left out.")

    def split_of(self, folder: str) -> str:
        """The split of a folder such as ``train-clean-100``."""
        kind, _, _ = folder.partition("-")
        merged = self.splits == "merged" or (self.splits == "conditions" and kind == "train")
        return kind if merged else folder


class LibriTtsConfig(LibriConfig):
    """Options of the reader of LibriTTS."""

    text: Literal["normalized", "original"] = Field(
        "normalized", description="Which of the two transcripts: `<id>.normalized.txt` or `<id>.original.txt`."
    )


class _Libri(Reader[LibriConfig]):
    """What LibriSpeech and LibriTTS have in common: ``<folder>/<speaker>/<chapter>``."""

    Config: ClassVar[type[Strict]] = LibriConfig

    def read(self, root: Path) -> Iterator[Record]:
        for folder in self._split_folders(existing_folder(root)):
            for chapter in _folders(folder, depth=2):
                yield from self.chapter(chapter, self.options.split_of(folder.name))

    @abstractmethod
    def chapter(self, chapter: Path, split: str) -> Iterator[Record]:
        """The records of one chapter, whose folder lies in its speaker's."""

    def _split_folders(self, base: Path) -> list[Path]:
        found = {folder.name: folder for folder in _folders(base, depth=1) if folder.name.split("-")[0] in SPLITS}
        if not found:
            raise DataError(f"{base}: no folder named train-*, dev-* or test-*; the root is the folder that holds them")
        wanted = list(found) if self.options.folders is None else self.options.folders
        missing = [name for name in wanted if name not in found]
        if missing:
            raise DataError("\n".join(f"{base}: no folder {name!r}{did_you_mean(name, found)}" for name in missing))
        return [found[name] for name in wanted]


class LibriSpeech(_Libri):
    """LibriSpeech; a transcript without its sound file is a record too, so that it is reported and not lost."""

    layout: ClassVar[str] = "<folder>/<speaker>/<chapter>/<id>.flac, and <speaker>-<chapter>.trans.txt beside them"

    def chapter(self, chapter: Path, split: str) -> Iterator[Record]:
        speaker = chapter.parent.name
        said = _transcripts(chapter / f"{speaker}-{chapter.name}.trans.txt")
        for id_ in sorted(said.keys() | {path.stem for path in chapter.glob("*.flac")}):
            yield spoken(id_, split, (chapter / f"{id_}.flac",), said.get(id_), speaker)


class LibriTts(_Libri):
    """LibriTTS and LibriTTS-R."""

    Config: ClassVar[type[Strict]] = LibriTtsConfig
    layout: ClassVar[str] = "<folder>/<speaker>/<chapter>/<id>.wav, each with its <id>.normalized.txt"

    def __init__(self, options: LibriTtsConfig) -> None:
        super().__init__(options)
        self._suffix = f".{options.text}.txt"

    def chapter(self, chapter: Path, split: str) -> Iterator[Record]:
        for path in sorted(chapter.glob("*.wav")):
            yield spoken(path.stem, split, (path,), read_text(path.with_suffix(self._suffix)), chapter.parent.name)


class LibriLightConfig(DrawnSplits):
    """Options of the reader of Libri-Light."""

    fractions: dict[str, float] = Field(
        default_factory=lambda: {"train": 1.0},
        description="Split to its share; the shares add up to 1. A book is in one split with all that was cut from it.",
    )


class LibriLight(Reader[LibriLightConfig]):
    """Libri-Light, or any speech without words in folders of speakers and books: records with sound alone."""

    Config: ClassVar[type[Strict]] = LibriLightConfig
    layout: ClassVar[str] = "<speaker>/<book>/<id>.flac (or .wav), in any folder"

    def read(self, root: Path) -> Iterator[Record]:
        base = existing_folder(root)
        for path in sorted(p for p in base.rglob("*") if p.suffix.lower() in (".flac", ".wav")):
            place = path.relative_to(base).with_suffix("")
            book = place.parts[-3:-1]
            speaker = book[0] if len(book) == 2 else ""
            yield Record(place.as_posix(), self.options.split_of(" ".join(book)), {"speech": Sound((path,))}, speaker)


def _folders(root: Path, depth: int) -> list[Path]:
    return sorted(path for path in root.glob("/".join("*" * depth)) if path.is_dir())


def _transcripts(path: Path) -> dict[str, str]:
    lines = (read_text(path) or "").splitlines()
    return {id_: text.strip() for id_, _, text in (line.partition(" ") for line in lines) if id_}
