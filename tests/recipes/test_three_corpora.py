"""Folders laid out like LibriSpeech: clean is the recordings themselves, other is faster and noisier."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from helpers.corpora import touch
from helpers.sounds import SMALL, tone
from zippkit.data.audio import read_audio, write_audio
from zippkit.data.prepare import prepare
from zippkit.data.readers import read
from zippkit.errors import DataError

FOLDER = Path(__file__).parents[2] / "recipes" / "three_corpora"


@pytest.fixture
def corpora(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The recipe's script."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("make_corpora")
    sys.modules.pop("make_corpora")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Sixty recordings of forty prompts, two of them .wav."""
    root = tmp_path / "voice"
    for index in range(60):
        words = touch(root / f"{index:02d}.txt", f"prompt number {index % 40}")
        write_audio(words.with_suffix(".wav" if index < 2 else ".flac"), tone(0.5, index), 8000)
    return root


def test_clean_is_the_recordings_and_other_is_not(corpora: ModuleType, pairs: Path, tmp_path: Path) -> None:
    made = corpora.make(pairs, tmp_path / "out")
    root = tmp_path / "out" / "LibriSpeech"
    found = list(read("librispeech", root))
    assert Counter(r.split for r in found) == {
        "train": made["train-clean"],
        **{name: made[name] for name in ("dev-clean", "test-clean", "test-other")},
    }
    assert made["test-clean"] == made["test-other"] and sum(made.values()) - made["test-other"] == 60
    texts = {split: {r.text for r in found if r.split == split} for split in {r.split for r in found}}
    assert texts["test-clean"] == texts["test-other"]
    assert not texts["train"] & texts["dev-clean"] | texts["train"] & texts["test-clean"]
    links = [path.is_symlink() for path in sorted(root.rglob("*.flac")) if "other" not in str(path)]
    assert sum(links) == 58 and len(links) == 60
    clean, other = (next(r for r in found if r.split == split) for split in ("test-clean", "test-other"))
    assert clean.text == other.text
    assert len(read_audio(other.files[0])[0]) == pytest.approx(
        len(read_audio(clean.files[0])[0]) / corpora.FASTER, abs=2
    )
    with pytest.raises(DataError, match="LibriSpeech exists already"):
        corpora.make(pairs, tmp_path / "out")


def test_noise_is_10_db_below_and_the_same_again(corpora: ModuleType) -> None:
    wave = (0.2 * np.sin(np.arange(16_000) / 3)).astype(np.float32)
    made = corpora.harder(wave, 8000, "0 a")
    np.testing.assert_array_equal(made, corpora.harder(wave, 8000, "0 a"))
    assert not np.array_equal(made, corpora.harder(wave, 8000, "0 b"))
    spectrum = np.abs(np.fft.rfft(made * np.hanning(len(made)))) ** 2
    peak = int(spectrum.argmax())
    speech = spectrum[peak - 3 : peak + 4].sum()
    assert peak / len(made) == pytest.approx(corpora.FASTER / 3 / (2 * np.pi), rel=0.01)
    assert 10 * np.log10(speech / (spectrum.sum() - speech)) == pytest.approx(10, abs=0.5)


def test_it_prepares(corpora: ModuleType, pairs: Path, tmp_path: Path) -> None:
    corpora.make(pairs, tmp_path / "out", limit=3)
    dataset = prepare("librispeech", tmp_path / "out" / "LibriSpeech", tmp_path / "data", units=SMALL)
    sizes = {name: len(dataset.split(name)) for name in dataset.splits}
    assert list(sizes) == ["train", "dev-clean", "test-clean", "test-other"] and sizes["train"] == 3
    assert sizes["test-clean"] == sizes["test-other"]
