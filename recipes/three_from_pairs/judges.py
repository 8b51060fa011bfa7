"""Who tells which digit an image shows or a run of units says: support vector machines on the training split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippkit.data.dataset import Dataset, Tokenizer
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.units import UnitTokenizer

N_FRAMES = 16
"""Frames that a recording is stretched or squeezed to before it is judged."""


@dataclass(frozen=True)
class Judge:
    """A classifier of one modality's ids."""

    features: Callable[[Any], NDArray[np.float64]]
    classifier: Any
    accuracy: float
    """On the test split's own items: what a perfect generator would reach."""

    def words(self, runs: Sequence[Any]) -> list[str]:
        """What each run of ids shows or says; a run without a single unit or level says nothing."""
        seen = np.stack([self.features(ids) for ids in runs])
        said = self.classifier.predict(seen)
        return [str(word) if row.any() else "" for word, row in zip(said, seen, strict=True)]


def judge(dataset: Dataset, modality: str) -> Judge:
    """Train a judge on the training split, and test it on the test split."""
    from sklearn.svm import SVC

    features = _features(dataset.tokenizer(modality))
    made = {}
    for name in ("train", "test"):
        split = dataset.split(name)
        examples = [split[int(i)] for i in split.having(["text", modality])]
        made[name] = [features(e.items[modality]) for e in examples], [str(e.items["text"]) for e in examples]
    classifier = SVC(C=10).fit(*made["train"])
    return Judge(features, classifier, float(classifier.score(*made["test"])))


def _features(tokenizer: Tokenizer) -> Callable[[Any], NDArray[np.float64]]:
    def pixels(ids: Any) -> NDArray[np.float64]:
        assert isinstance(tokenizer, PixelTokenizer)
        return tokenizer.decode(ids).ravel().astype(np.float64)

    def spectrum(ids: Any) -> NDArray[np.float64]:
        """The units' mel bands in ``N_FRAMES`` frames, loudness taken out."""
        assert isinstance(tokenizer, UnitTokenizer)
        mel = tokenizer.decode_mel(ids).astype(np.float64)
        if not len(mel):
            return np.zeros(N_FRAMES * mel.shape[1])
        places, frames = np.linspace(0, len(mel) - 1, N_FRAMES), np.arange(len(mel))
        stretched = np.stack([np.interp(places, frames, band) for band in mel.T], axis=1)
        return np.ravel(stretched - stretched.mean())

    return pixels if isinstance(tokenizer, PixelTokenizer) else spectrum
