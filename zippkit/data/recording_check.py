"""Which recordings of a corpus can be used, and why the others cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zippkit.data import audio
from zippkit.data.audio import Wave
from zippkit.data.records import Record
from zippkit.data.speech_tokenizer import Progress
from zippkit.data.text import ByteTokenizer, FileTokenizer
from zippkit.errors import DataError

_LISTED = 20
"""Bad recordings that a message lists; it counts the rest."""


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
class RecordingCheck:
    """Which recordings can be used, and why the others cannot."""

    root: Path
    rate: int
    resample: bool
    skip_bad: bool
    text_tokenizer: ByteTokenizer | FileTokenizer
    good: list[Record] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Id and reason."""

    def run(self, recordings: Sequence[Record], progress: Progress | None) -> Iterator[tuple[Record, Wave]]:
        """Each good recording as it is found; at the end, so that all are named, an error if there were bad ones."""
        count = Counter(len(recordings), "reading", progress)
        seen: set[str] = set()
        for recording in recordings:
            try:
                if recording.trouble:
                    raise DataError("; ".join(recording.trouble))
                self.text(recording)
                wave = self.wave(recording)
                if recording.id in seen:
                    raise DataError(f"another recording has the same id ({recording.files[0]})")
            except DataError as error:
                # Where the corpus lay is said once in a message, and is nobody's business in a dataset.
                self.bad.append((recording.id, str(error).replace(f"{self.root}{os.sep}", "")))
            else:
                self.good.append(recording)
                yield recording, wave
            seen.add(recording.id)
            count.step()
        if self.bad and not self.skip_bad:
            raise DataError(self._report(len(recordings)))

    def text(self, recording: Record) -> str:
        """The transcript, one that the tokenizer takes."""
        if recording.text is None:
            raise DataError(f"no transcript for {recording.files[0]}")
        if not recording.text.strip():
            raise DataError(f"empty transcript for {recording.files[0]}")
        self.text_tokenizer.encode(recording.text)
        return recording.text.strip()

    def wave(self, recording: Record) -> Wave:
        """(N,) samples at ``self.rate``, of all the recording's files."""
        waves = []
        for path in recording.files:
            wave, rate = audio.read_audio(path)
            if rate != self.rate and not self.resample:
                raise DataError(f"{path}: {rate} Hz, expected {self.rate}; resample=True (--resample) converts")
            waves.append(audio.resample(wave, rate, self.rate))
        return np.concatenate(waves)

    def _report(self, n_recordings: int) -> str:
        fix = "skip_bad=True (--skip-bad) leaves them out"
        lines = [f"{self.root}: {len(self.bad)} of {n_recordings} recordings cannot be used; {fix}"]
        lines += [f"  {id_}: {reason}" for id_, reason in self.bad[:_LISTED]]
        if len(self.bad) > _LISTED:
            lines.append(f"  and {len(self.bad) - _LISTED} more")
        return "\n".join(lines)
