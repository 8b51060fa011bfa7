"""The splits of a corpus: their names, a sample of each, and the tokenizer of their transcripts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from zippkit.data.manifest import is_dataset, tokenized_column
from zippkit.data.records import Record, in_order, is_training
from zippkit.data.text import ByteTokenizer, FileTokenizer, train_words
from zippkit.data.text_files import load_text_tokenizer


def limited(recordings: list[Record], limit: int | None, seed: int) -> list[Record]:
    """At most ``limit`` of each split, in the reader's order."""
    if limit is None:
        return recordings
    rng = np.random.default_rng(seed)
    kept: set[int] = set()
    for split in split_names(recordings):
        places = [i for i, recording in enumerate(recordings) if recording.split == split]
        kept.update(rng.permutation(places)[:limit].tolist())
    return [recordings[i] for i in sorted(kept)]


def split_names(recordings: Iterable[Record]) -> list[str]:
    """Names of the splits, training first."""
    return in_order({recording.split for recording in recordings})


def transcript_tokenizer(
    text: str | Path, records: Iterable[Record], modality: str = "text"
) -> ByteTokenizer | FileTokenizer:
    """``"bytes"``, ``"words"`` (those of a modality's training split), a ``tokenizer.json``, or a dataset's own."""
    if text == "words":
        training = (source for record in records if is_training(record.split) for source in record.sources())
        return train_words(words for name, words in training if name == modality and isinstance(words, str))
    if is_dataset(text):
        column = tokenized_column(text, modality)
        file = "bytes" if column.file is None else Path(text) / column.file
        return load_text_tokenizer(file, column.begin, column.end)
    return load_text_tokenizer(text)
