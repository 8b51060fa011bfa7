"""The splits of a corpus: their names, a sample of each, and the tokenizer of their transcripts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from zippkit.data.text import ByteTokenizer, FileTokenizer, train_words
from zippkit.data.text_files import load_text_tokenizer


class Labelled(Protocol):
    """A recording, or another thing of a corpus that has a transcript."""

    @property
    def text(self) -> str | None:
        """Transcript or caption; None where the transcript is missing."""

    @property
    def split(self) -> str:
        """Name of the split."""


_Labelled = TypeVar("_Labelled", bound=Labelled)


def limited(recordings: list[_Labelled], limit: int | None, seed: int) -> list[_Labelled]:
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
