"""Interleaved documents in JSONL: each line an id and a list of segments, in any order and number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from zippkit.data.readers.base import Reader
from zippkit.data.readers.cells import BY_NAME, CONTENTS, Cell, Content
from zippkit.data.readers.drawn_splits import USUAL, DrawnSplits, named_split
from zippkit.data.readers.table_files import Row, found_files, json_lines
from zippkit.data.records import Record, Source
from zippkit.errors import DataError, did_you_mean
from zippkit.spec.kinds import Strict


class DocumentsConfig(DrawnSplits):
    """Options of the reader of documents."""

    segments: str = Field("segments", description="Key of the list.")
    folder: str = Field("", description="Folder that paths are relative to, itself relative to the file's.")
    vocab_size: dict[str, int] = Field(
        default_factory=dict, description="Modality of ids to the number of its ids: they run from 0 to below it."
    )


class Documents(Reader[DocumentsConfig]):
    """Lines such as ``{"id": "a", "segments": [{"text": "Listen:"}, {"audio": "a.flac"}, {"text": "A bird."}]}``.

    A segment has one key, its modality. ``text``, ``speech`` (or ``audio``) and ``image`` tell what they hold; of
    others the value does: ``{"motion": {"features": "a.npy"}}``, ``{"units": {"ids": [3, 1, 4]}}``.
    """

    Config: ClassVar[type[Strict]] = DocumentsConfig
    layout: ClassVar[str] = "a .jsonl file, or a folder of such files, each line with an id and its segments"

    def read(self, root: Path) -> Iterator[Record]:
        for file in found_files(root, {".jsonl"}):
            reader = _LineReader(self.options, file, file.parent / self.options.folder)
            yield from map(reader.record, json_lines(file)[1])


@dataclass(frozen=True)
class _LineReader:
    """Makes records of the lines of one file."""

    options: DocumentsConfig
    file: Path
    base: Path

    def record(self, row: Row) -> Record:
        """The document of a line; what is wrong with it, segment by segment, is its trouble."""
        place = f"{self.file.name}:{row.number}"
        trouble = [f"{place}: {row.trouble}"] if row.trouble else self._wrong_keys(place, row.values)
        given = row.values.get(self.options.segments)
        segments: list[tuple[str, Source]] = []
        for number, segment in enumerate(given if isinstance(given, list) else []):
            try:
                segments.append(self._segment(segment))
            except DataError as error:
                trouble.append(f"{place}: {self.options.segments}[{number}]: {error}")
        id_ = str(row.values.get("id") or f"{self.file.stem}-{row.number:06d}")
        told = str(row.values.get("split") or "")
        split = USUAL.get(told, told) or named_split(self.file.stem) or self.options.split_of(id_)
        speaker = str(row.values.get("speaker") or "")
        return Record(id_, split, speaker=speaker, segments=tuple(segments), trouble=tuple(trouble))

    def _wrong_keys(self, place: str, values: Mapping[str, Any]) -> list[str]:
        segments = values.get(self.options.segments)
        if segments is None:
            return [f"{place}: no key {self.options.segments!r}{did_you_mean(self.options.segments, values)}"]
        if not isinstance(segments, list) or not segments:
            return [f"{place}: {self.options.segments} is {segments!r:.60}, expected a list of segments"]
        return []

    def _segment(self, segment: Any) -> tuple[str, Source]:
        if not isinstance(segment, dict) or len(segment) != 1:
            raise DataError(f"{segment!r:.60}, expected one modality and what it holds, as in {{text: ...}}")
        ((name, value),) = segment.items()
        modality = "speech" if name == "audio" else name
        kind = BY_NAME.get(name)
        if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in CONTENTS:
            ((kind, value),) = value.items()
        if kind is None:
            raise DataError(f"what {name} holds is missing; expected {{{name}: {{KIND: ...}}}}, {_kinds()}")
        # White space may part a text from what stands before and after it.
        as_it_is = value if kind == "text" and isinstance(value, str) and value.strip() else None
        source = as_it_is or self._cell(modality, kind).source(value, self.base)
        if source is None:
            raise DataError(f"{name} is empty")
        return modality, source

    def _cell(self, modality: str, kind: Content) -> Cell:
        return Cell(column=modality, kind=kind, vocab_size=self.options.vocab_size.get(modality))


def _kinds() -> str:
    return f"KIND one of {', '.join(CONTENTS)}"
