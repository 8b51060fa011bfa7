"""A corpus on disk to a dataset folder: check every recording, train what is to be trained, encode, write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from zippkit.data.audio import Wave
from zippkit.data.corpus_splits import limited, split_names, transcript_tokenizer
from zippkit.data.dataset import Dataset, Example, Item
from zippkit.data.dataset_writer import refuse_to_overwrite, write_dataset
from zippkit.data.readers.corpus import Kind, kind_name, records_of
from zippkit.data.recording_check import Counter, RecordingCheck
from zippkit.data.records import Record, is_training
from zippkit.data.speech_tokenizer import Progress, SpeechTokenizer, tokenizer_class
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict
from zippkit.spec.validation import validate


def prepare(
    kind: Kind,
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
        kind: a reader's name, a reader, or a function that is called with ``root`` and ``options``.
        root: the corpus's folder.
        out: the dataset to write.
        units: settings of the units to train on the training split, or a trained tokenizer or its file, used as it is.
        tokenizer: registered kind of the units, unless they are a trained tokenizer.
        vocoder: train a way back to sound on the training split too.
        waveform: write speech as waveforms of so many samples a second, for a tower that is fed sound, and no units.
        text: ``"bytes"``, ``"words"`` (the training split's own), or a ``tokenizer.json``.
        resample: bring recordings to the sample rate of units or waveforms; otherwise those of another count as bad.
        skip_bad: leave bad recordings out, and name them in the manifest.
        limit: at most so many recordings per split, drawn with ``seed``.
        seed: of the sample that ``limit`` draws and of training.
        overwrite: replace a dataset that is there.
        options: for the reader.
        progress: told how far each stage is.

    Raises:
        DataError: bad recordings, all of them in one message, or nothing to train on, or ``out`` exists, or units and
            waveforms are asked for. Nothing is written then.
    """
    refuse_to_overwrite(Path(out), overwrite)
    if waveform is not None and (units is not None or vocoder or waveform < 1):
        raise DataError(f"waveform={waveform} and units={units!r}; expected a sample rate in Hz, or units, not both")
    recordings = limited(records_of(kind, root, options), limit, seed)
    text_tokenizer = transcript_tokenizer(text, recordings)
    source = None if waveform is not None else _UnitSource.of(units, tokenizer)
    if vocoder and source and not source.cls.takes_vocoder:
        raise DataError(source.cls.no_vocoder())
    rate = waveform or (source.sample_rate if source else 0)
    check = RecordingCheck(Path(root), rate, resample, skip_bad, text_tokenizer)
    speech_tokenizer = _read_and_train(check, recordings, source, vocoder, seed, progress)
    encoded = Counter(len(check.good), "encoding", progress)
    origin = {
        "kind": kind_name(kind),
        "root": Path(root).resolve().name,
        "options": dict(options or {}),
        "limit": limit,
        "seed": seed,
        "resample": resample,
    }
    return write_dataset(
        out,
        {split: _examples(check, split, speech_tokenizer, encoded) for split in split_names(check.good)},
        {"text": text_tokenizer} | ({"speech": speech_tokenizer} if speech_tokenizer else {}),
        waveforms={} if waveform is None else {"speech": waveform},
        source=origin,
        skipped=check.bad,
        overwrite=overwrite,
    )


def _read_and_train(
    check: RecordingCheck,
    recordings: Sequence[Record],
    source: _UnitSource | None,
    vocoder: bool,
    seed: int,
    progress: Progress | None,
) -> SpeechTokenizer | None:
    """Check every recording, and train the speech tokenizer on those of the training split as they are read."""
    train_waves = (wave for recording, wave in check.run(recordings, progress) if is_training(recording.split))
    trained = source.make(train_waves, seed, progress) if source else None
    for _ in train_waves:
        pass  # What needs no training left the recordings unread, and unchecked.
    if trained is not None and vocoder:
        again = (check.wave(recording) for recording in check.good if is_training(recording.split))
        trained = add_vocoder(trained, again, seed, progress)
    return trained


@dataclass(frozen=True)
class _UnitSource:
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
    """Return the tokenizer with a vocoder trained on recordings at its sample rate; ids and fingerprint stay.

    Raises:
        DataError: the kind takes no vocoder, or there are no recordings.
    """
    # Imports torch, which a dataset without a vocoder does not need.
    from zippkit.data.speech.train_vocoder import train_vocoder

    return tokenizer.with_vocoder(train_vocoder(tokenizer, waves, seed=seed, progress=progress))


def _examples(check: RecordingCheck, split: str, units: SpeechTokenizer | None, encoded: Counter) -> Iterator[Example]:
    for recording in check.good:
        if recording.split == split:
            wave = check.wave(recording)
            speech: Item = units.encode(wave, check.rate) if units else wave
            items: dict[str, Item] = {"text": check.text(recording), "speech": speech}
            yield Example(recording.id, recording.speaker, len(wave) / check.rate, items)
            encoded.step()
