"""A corpus on disk to a dataset folder: check every record, train what is to be trained, encode, write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zippkit.data.audio import Wave
from zippkit.data.corpus_splits import limited, split_names
from zippkit.data.dataset import Dataset, Example, Item
from zippkit.data.dataset_writer import refuse_to_overwrite, write_dataset
from zippkit.data.discrete_tokenizer import Progress
from zippkit.data.encoders import Encoder, SoundEncoder
from zippkit.data.modality_choices import Choice, Choices
from zippkit.data.readers.corpus import Kind, kind_name, records_of
from zippkit.data.record_check import Counter, OpenedRecord, RecordCheck
from zippkit.data.records import Record, is_training
from zippkit.data.speech_tokenizer import SpeechTokenizer
from zippkit.data.trained_or_new import Settings
from zippkit.errors import DataError


def prepare(
    kind: Kind,
    root: str | Path | None,
    out: str | Path,
    *,
    units: Settings = None,
    tokenizer: str = "mel_units",
    vocoder: bool = False,
    waveform: int | None = None,
    text: str | Path = "bytes",
    tokenizers: Mapping[str, Choice] | None = None,
    resample: bool = False,
    partial: bool = False,
    skip_bad: bool = False,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Write the corpus under ``root`` as a dataset with the modalities that its records have.

    Sound becomes units, pictures grey levels; text, ids and frames of floats are stored as they are, unless
    ``tokenizers`` says otherwise.

    Args:
        kind: a reader's name, a reader, or a function that is called with ``root`` and ``options``.
        root: the corpus's folder; None for one that comes with a library.
        out: the dataset to write.
        units: of sound: settings of the units to train on the training splits, or a trained tokenizer or its file.
        tokenizer: of sound: registered kind of the units, unless they are a trained tokenizer.
        vocoder: train a way back to sound on the training splits too.
        waveform: write sound as waveforms of so many samples a second, for a tower that is fed sound, and no units.
        text: ``"bytes"``, ``"words"`` (the training splits' own), or a ``tokenizer.json``.
        tokenizers: modality to what turns it into ids: a registered kind, ``"none"``, what ``text`` may be, a
            tokenizer, its settings, or a mapping of ``kind`` and settings; these go before the arguments above.
        resample: bring recordings to the sample rate of units or waveforms; otherwise those of another count as bad.
        partial: keep records that lack a modality which others have; a task passes over those that lack one of its.
        skip_bad: leave bad records out, and name them in the manifest.
        limit: at most so many records per split, drawn with ``seed``.
        seed: of the sample that ``limit`` draws and of training.
        overwrite: replace a dataset that is there.
        options: for the reader.
        progress: told how far each stage is.

    Raises:
        DataError: bad records, all of them in one message, or nothing to train on, or ``out`` exists, or choices that
            do not fit the corpus. Nothing is written then.
    """
    refuse_to_overwrite(Path(out), overwrite)
    if waveform is not None and (units is not None or vocoder or waveform < 1):
        raise DataError(f"waveform={waveform} and units={units!r}; expected a sample rate in Hz, or units, not both")
    base = Path(root or "")
    records = limited(records_of(kind, base, options), limit, seed)
    encoders = Choices(text, units, tokenizer, waveform, resample, vocoder, tokenizers or {}).encoders(records)
    documents = records[0].segments is not None
    check = RecordCheck(base, encoders, documents, partial, skip_bad)
    _read_and_train(check, records, seed, progress)
    there = {name for record in check.good for name, _ in record.sources()}
    used = {name: encoder for name, encoder in encoders.items() if name in there}
    for name, encoder in used.items():
        if vocoder and isinstance(encoder, SoundEncoder) and encoder.tokenizer:
            encoder.tokenizer = add_vocoder(encoder.tokenizer, check.training(name), seed, progress)
    origin = {
        "kind": kind_name(kind),
        "root": base.resolve().name if root else "",
        "options": dict(options or {}),
        "limit": limit,
        "seed": seed,
        "resample": resample,
    }
    encoded = Counter(len(check.good), "encoding", progress)
    plain = {name: encoder for name, encoder in used.items() if encoder.tokenizer is None}
    return write_dataset(
        out,
        {split: _examples(check, split, encoded) for split in split_names(check.good)},
        {name: encoder.tokenizer for name, encoder in used.items() if encoder.tokenizer is not None},
        waveforms={name: encoder.rate for name, encoder in plain.items() if encoder.rate is not None},
        arrays={name: encoder.shape for name, encoder in plain.items() if encoder.rate is None},
        source=origin,
        skipped=check.bad,
        partial=partial,
        overwrite=overwrite,
    )


def _read_and_train(check: RecordCheck, records: Sequence[Record], seed: int, progress: Progress | None) -> None:
    """Check every record, and train each modality's tokenizer on the training splits, the first as they are read."""
    learners = [name for name, encoder in check.encoders.items() if encoder.to_train]
    read = check.run(records, progress)
    if learners:
        check.encoders[learners[0]].train(_training(read, learners[0]), seed, progress)
    for _ in read:
        pass  # What needs no training left the records unread, and unchecked.
    for name in learners[1:]:
        check.encoders[name].train(check.training(name), seed, progress)


def _training(read: Iterable[tuple[Record, OpenedRecord]], modality: str) -> Iterator[Any]:
    for record, opened in read:
        if is_training(record.split):
            yield from (item for name, item in opened if name == modality)


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


def _examples(check: RecordCheck, split: str, encoded: Counter) -> Iterator[Example]:
    for record in check.good:
        if record.split == split:
            opened = check.open(record)
            items = tuple((name, _encoded(check.encoders[name], record, name, each)) for name, each in opened)
            seconds = [check.encoders[name].seconds(each) for name, each in opened]
            if check.documents:
                yield Example(record.id, record.speaker, sum(seconds), {}, items)
            else:
                yield Example(record.id, record.speaker, max(seconds), dict(items))
            encoded.step()


def _encoded(encoder: Encoder[Any], record: Record, name: str, opened: Any) -> Item:
    try:
        return encoder.encode(opened)
    except DataError as error:
        raise DataError(f"{record.id}: {name}: {error}") from None
