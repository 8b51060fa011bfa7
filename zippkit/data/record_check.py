"""Which records of a corpus can be used, and why the others cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from zippkit.data.discrete_tokenizer import Progress
from zippkit.data.encoders import Encoder, SoundEncoder, TextEncoder
from zippkit.data.records import Record, Source, is_training
from zippkit.errors import DataError

_LISTED = 20
"""Bad records that a message lists; it counts the rest."""

OpenedRecord: TypeAlias = tuple[tuple[str, Any], ...]
"""(modality, what was opened of it) of each item or segment."""


@dataclass
class Counter:
    """Tells ``progress``, if there is one, how many of ``total`` are done."""

    total: int
    what: str
    progress: Progress | None
    done: int = 0

    def step(self) -> None:
        """Count one more as done."""
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total, self.what)


@dataclass
class RecordCheck:
    """Which records can be used, and why the others cannot."""

    root: Path
    encoders: Mapping[str, Encoder[Any]]
    documents: bool
    """Whether records are documents."""
    partial: bool
    """Whether a record may lack a modality."""
    skip_bad: bool
    good: list[Record] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Id and reasons."""

    def run(self, records: Sequence[Record], progress: Progress | None) -> Iterator[tuple[Record, OpenedRecord]]:
        """Each good record as it is found; at the end, so that all are named, an error if there were bad ones."""
        count = Counter(len(records), "reading", progress)
        seen: set[str] = set()
        for record in records:
            opened: list[tuple[str, Any]] = []
            wrong = list(record.trouble) or list(self._wrong(record, seen, opened))
            if wrong:
                # Where the corpus lay is said once in a message, and is nobody's business in a dataset.
                self.bad.append((record.id, "; ".join(wrong).replace(f"{self.root}{os.sep}", "")))
            else:
                self.good.append(record)
                yield record, tuple(opened)
            seen.add(record.id)
            count.step()
        if self.bad and not self.skip_bad:
            raise DataError(self._report(len(records)))

    def open(self, record: Record, only: str | None = None) -> OpenedRecord:
        """What a good record holds, opened again; of one modality, if only that is wanted."""
        return tuple(
            (name, self.encoders[name].open(self._source(source)))
            for name, source in record.sources()
            if only in (None, name)
        )

    def training(self, modality: str) -> Iterator[Any]:
        """One modality of the good records of training splits, opened again."""
        for record in self.good:
            if is_training(record.split):
                yield from (opened for _, opened in self.open(record, modality))

    def _wrong(self, record: Record, seen: set[str], opened: list[tuple[str, Any]]) -> Iterator[str]:
        """Every reason why a record cannot be used; what could be opened goes to ``opened``."""
        if (record.segments is not None) != self.documents:
            yield "a document, which the others are not" if record.segments is not None else "no document as the others"
        there = list(record.sources())
        missing = [name for name in self.encoders if name not in dict(there)]
        if not there:
            yield "nothing in it"
        elif missing and not self.partial and not self.documents:
            fix = "" if "text" in missing and record.files else "; partial=True (--partial) keeps such records"
            yield ", ".join(f"no {_word(name, record)}" for name in missing) + fix
        for index, (name, source) in enumerate(there):
            where = f"segment {index} ({name}): " if self.documents else _where(name, self.encoders[name])
            if isinstance(source, str) and not source.strip():
                yield f"{where}empty {_word(name, record)}"
                continue
            try:
                opened.append((name, self.encoders[name].open(self._source(source))))
            except DataError as error:
                yield f"{where}{error}"
        if record.id in seen:
            yield (
                f"another recording has the same id ({record.files[0]})" if record.files else "another has the same id"
            )

    def _source(self, source: Source) -> Source:
        """Text without white space around it; in a document, that may part it from what comes before."""
        return source.strip() if isinstance(source, str) and not self.documents else source

    def _report(self, n_records: int) -> str:
        fix = "skip_bad=True (--skip-bad) leaves them out"
        what = "recordings" if any(isinstance(each, SoundEncoder) for each in self.encoders.values()) else "records"
        lines = [f"{self.root}: {len(self.bad)} of {n_records} {what} cannot be used; {fix}"]
        lines += [f"  {id_}: {reason}" for id_, reason in self.bad[:_LISTED]]
        if len(self.bad) > _LISTED:
            lines.append(f"  and {len(self.bad) - _LISTED} more")
        return "\n".join(lines)


def _word(name: str, record: Record) -> str:
    return f"transcript for {record.files[0]}" if name == "text" and record.files else name


def _where(name: str, encoder: Encoder[Any]) -> str:
    """Sound is known by its file, and text by itself."""
    return "" if isinstance(encoder, SoundEncoder | TextEncoder) else f"{name}: "
