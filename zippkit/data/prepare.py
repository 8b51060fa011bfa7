"""A corpus on disk to a dataset folder: check every recording, train what is to be trained, encode, write."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError

from zippkit.data import audio
from zippkit.data.audio import Wave
from zippkit.data.dataset import Dataset, Example, Item, refuse_to_overwrite, write_dataset
from zippkit.data.readers import Recording, reader
from zippkit.data.speech_tokenizer import Progress, SpeechTokenizer, tokenizer_class
from zippkit.data.text import ByteTokenizer, FileTokenizer, load_text_tokenizer, train_words
from zippkit.errors import DataError, did_you_mean
from zippkit.spec.kinds import Strict
from zippkit.spec.validation import validate

_LISTED = 20
"""Bad recordings that a message lists; it counts the rest."""


class Labelled(Protocol):
    """A recording, or another thing of a corpus that has a transcript."""

    @property
    def text(self) -> str | None: ...
    @property
    def split(self) -> str: ...


_Labelled = TypeVar("_Labelled", bound=Labelled)


def prepare(
    kind: str | Callable[..., Iterable[Recording]],
    root: str | Path,
    out: str | Path,
    *,
    units: Strict | SpeechTokenizer | str | Path | None = None,
    tokenizer: str = "mel_units",
    vocoder: bool = False,
    waveform: int | None = None,
    text: str | Path = "bytes",
    resample: bool = False,
    skip_bad: bool = False,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Write the corpus under ``root`` as a dataset with the modalities ``text`` and ``speech``.

    Args:
        kind: a reader's name, or a function like one: called with ``root`` and ``options``.
        units: settings of the units to train on the training split, or a trained tokenizer or its file, used as it is.
        tokenizer: registered kind of the units, unless they are a trained tokenizer.
        vocoder: train a way back to sound on the training split too.
        waveform: write speech as waveforms of so many samples a second, for a tower that is fed sound, and no units.
        text: ``"bytes"``, ``"words"`` (the training split's own), or a ``tokenizer.json``.
        resample: bring recordings to the sample rate of units or waveforms; otherwise those of another count as bad.
        skip_bad: leave bad recordings out, and name them in the manifest.
        limit: at most so many recordings per split, drawn with ``seed``.
        options: for the reader.

    Raises:
        DataError: bad recordings, all of them in one message, or nothing to train on, or ``out`` exists, or units and
            waveforms are asked for. Nothing is written then.
    """
    refuse_to_overwrite(Path(out), overwrite)
    if waveform is not None and (units is not None or vocoder or waveform < 1):
        raise DataError(f"waveform={waveform} and units={units!r}; expected a sample rate in Hz, or units, not both")
    read = reader(kind) if isinstance(kind, str) else kind
    _check_options(kind, read, options or {})
    recordings = drawn(list(read(Path(root), **(options or {}))), limit, seed)
    if not recordings:
        raise DataError(f"{root}: no recordings of the kind {_name(kind)}")
    text_tokenizer = transcript_tokenizer(text, recordings)
    maker = None if waveform is not None else _Maker.of(units, tokenizer)
    if vocoder and maker and not maker.cls.takes_vocoder:
        raise DataError(maker.cls.no_vocoder())
    check = _Check(Path(root), waveform or (maker.sample_rate if maker else 0), resample, skip_bad, text_tokenizer)
    train_waves = (wave for recording, wave in check.run(recordings, progress) if recording.split == "train")
    trained = maker.make(train_waves, seed, progress) if maker else None
    for _ in train_waves:
        pass  # What needs no training left the recordings unread, and unchecked.
    if trained is not None and vocoder:
        again = (check.wave(recording) for recording in check.good if recording.split == "train")
        trained = add_vocoder(trained, again, seed, progress)

    encoded = _Counter(len(check.good), "encoding", progress)
    source = {
        "kind": _name(kind),
        "root": Path(root).resolve().name,
        "options": dict(options or {}),
        "limit": limit,
        "seed": seed,
        "resample": resample,
    }
    return write_dataset(
        out,
        {split: _examples(check, split, trained, encoded) for split in split_names(check.good)},
        {"text": text_tokenizer} | ({"speech": trained} if trained else {}),
        waveforms={} if waveform is None else {"speech": waveform},
        source=source,
        skipped=check.bad,
        overwrite=overwrite,
    )


def _check_options(kind: str | Callable[..., Iterable[Recording]], read: Any, options: Mapping[str, Any]) -> None:
    """Compare the options with the reader's own; types are known of zippkit's readers only."""
    accepted = list(inspect.signature(read).parameters)[1:]
    types = get_type_hints(read) if isinstance(kind, str) else {}
    for option, value in options.items():
        if option not in accepted:
            raise DataError(f"corpus kind {_name(kind)} has no option {option!r}{did_you_mean(option, accepted)}")
        try:
            TypeAdapter(types.get(option, Any)).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise DataError(f"corpus kind {_name(kind)}: option {option} is {value!r}: {reason}") from None


@dataclass
class _Counter:
    """Tells ``progress``, if there is one, how many of ``total`` are done."""

    total: int
    what: str
    progress: Progress | None
    done: int = 0

    def step(self) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total, self.what)


@dataclass
class _Check:
    """Which recordings can be used, and why the others cannot."""

    root: Path
    rate: int
    resample: bool
    skip_bad: bool
    text_tokenizer: ByteTokenizer | FileTokenizer
    good: list[Recording] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Id and reason."""

    def run(self, recordings: Sequence[Recording], progress: Progress | None) -> Iterator[tuple[Recording, Wave]]:
        """Each good recording as it is found; at the end, so that all are named, an error if there were bad ones."""
        count = _Counter(len(recordings), "reading", progress)
        seen: set[str] = set()
        for recording in recordings:
            try:
                self.text(recording)
                wave = self.wave(recording)
                if recording.id in seen:
                    raise DataError(f"another recording has the same id ({recording.audio[0]})")
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

    def text(self, recording: Recording) -> str:
        """The transcript, one that the tokenizer takes."""
        if recording.text is None:
            raise DataError(f"no transcript for {recording.audio[0]}")
        if not recording.text.strip():
            raise DataError(f"empty transcript for {recording.audio[0]}")
        self.text_tokenizer.encode(recording.text)
        return recording.text.strip()

    def wave(self, recording: Recording) -> Wave:
        """(N,) samples at ``self.rate``, of all the recording's files."""
        waves = []
        for path in recording.audio:
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


@dataclass(frozen=True)
class _Maker:
    """Where the speech tokenizer comes from: it is there, or it is trained."""

    trained: SpeechTokenizer | None
    cls: type[SpeechTokenizer]
    config: Any
    sample_rate: int

    @classmethod
    def of(cls, units: Strict | SpeechTokenizer | str | Path | None, kind: str) -> Self:
        """Raises DataError if the settings are not of the kind, or the file is not a tokenizer of it."""
        if isinstance(units, SpeechTokenizer):
            return cls(units, type(units), None, units.sample_rate)
        found = tokenizer_class(kind)
        if isinstance(units, str | Path):
            trained = found.load(units)
            return cls(trained, found, None, trained.sample_rate)
        if units is None:
            units, complaints = validate(found.Config, {})
            if units is None:
                raise DataError(f"tokenizer {kind}: {'; '.join(message for _, message in complaints)}")
        if not isinstance(units, found.Config):
            raise DataError(f"tokenizer {kind} takes a {found.Config.__name__}, got a {type(units).__name__}")
        return cls(None, found, units, found.rate_for(units))

    def make(self, waves: Iterable[Wave], seed: int, progress: Progress | None) -> SpeechTokenizer:
        return self.trained or self.cls.train(waves, self.config, seed, progress)


def add_vocoder(
    tokenizer: SpeechTokenizer, waves: Iterable[Wave], seed: int = 0, progress: Progress | None = None
) -> SpeechTokenizer:
    """The same tokenizer with a vocoder trained on recordings at its sample rate; ids and fingerprint stay.

    Raises:
        DataError: the kind takes no vocoder, or there are no recordings.
    """
    # By name, since it needs torch, which this package leaves alone.
    train = import_module("zippkit.data.speech.train_vocoder").train_vocoder
    return tokenizer.with_vocoder(train(tokenizer, waves, seed=seed, progress=progress))


def _examples(check: _Check, split: str, units: SpeechTokenizer | None, encoded: _Counter) -> Iterator[Example]:
    for recording in check.good:
        if recording.split == split:
            wave = check.wave(recording)
            speech: Item = units.encode(wave, check.rate) if units else wave
            items: dict[str, Item] = {"text": check.text(recording), "speech": speech}
            yield Example(recording.id, recording.speaker, len(wave) / check.rate, items)
            encoded.step()


def drawn(recordings: list[_Labelled], limit: int | None, seed: int) -> list[_Labelled]:
    """At most ``limit`` of each split, in the reader's order."""
    if limit is None:
        return recordings
    rng = np.random.default_rng(seed)
    kept: set[int] = set()
    for split in split_names(recordings):
        places = [i for i, recording in enumerate(recordings) if recording.split == split]
        kept.update(rng.permutation(places)[:limit].tolist())
    return [recordings[i] for i in sorted(kept)]


def split_names(recordings: Iterable[Labelled]) -> list[str]:
    """Names of the splits, training first."""
    usual = ("train", "dev", "test")
    names = {recording.split for recording in recordings}
    return [name for name in usual if name in names] + sorted(names.difference(usual))


def transcript_tokenizer(text: str | Path, recordings: Iterable[Labelled]) -> ByteTokenizer | FileTokenizer:
    """``"bytes"``, ``"words"`` (those of the recordings' training split), or a ``tokenizer.json``."""
    if text == "words":
        return train_words(r.text for r in recordings if r.split == "train" and r.text)
    return load_text_tokenizer(text)


def _name(kind: str | Callable[..., Iterable[Recording]]) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__name__", type(kind).__name__)
