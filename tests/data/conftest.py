"""Sounds, small tokenizers and small corpora that the data tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.sounds import SMALL, tone
from zippkit.data.audio import write_audio
from zippkit.data.units import UnitTokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data"
WORDS = ("zero", "one", "two", "three")


@pytest.fixture(scope="session")
def units() -> UnitTokenizer:
    return UnitTokenizer.train((tone(1.0, seed) for seed in range(8)), SMALL)


@pytest.fixture
def librispeech_root(tmp_path: Path) -> Path:
    """Twelve recordings of 0.5 s at 8 kHz: speakers 10 and 20, eight train, two dev, two test."""
    root = tmp_path / "LibriSpeech"
    for split, speaker, count in (("train-clean-100", 10, 8), ("dev-clean", 20, 2), ("test-other", 20, 2)):
        chapter = root / split / str(speaker) / "7"
        chapter.mkdir(parents=True)
        ids = [f"{speaker}-7-{split[:2]}{index:04d}" for index in range(count)]
        for index, id_ in enumerate(ids):
            write_audio(chapter / f"{id_}.flac", tone(0.5, seed=100 * count + index), 8000)
        lines = [f"{id_} {WORDS[index % 4]} {WORDS[-1 - index % 4]}\n" for index, id_ in enumerate(ids)]
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    return root


def shared(name: str) -> Path:
    """A folder of ``../shared/data``; skips the test where it is absent."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"../shared/data/{name} is absent")
    return folder


@pytest.fixture
def stories260k() -> Path:
    return shared("stories260k")


@pytest.fixture
def kathleen() -> Path:
    return shared("kathleen")


@pytest.fixture
def fsdd_root() -> Path:
    return shared("fsdd")


@pytest.fixture
def books() -> Path:
    return shared("books")
