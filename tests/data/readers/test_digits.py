"""Spoken digits: speakers and splits right, test recordings never in training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from helpers.corpora import touch
from zippkit.data.readers import DIGITS, read
from zippkit.data.records import File, spoken
from zippkit.errors import DataError


def fsdd_like(root: Path, speakers: tuple[str, ...] = ("ann", "bob"), n_indices: int = 14) -> Path:
    for speaker in speakers:
        for index in range(n_indices):
            for digit in (2, 7):
                touch(root / "recordings" / f"{digit}_{speaker}_{index}.wav")
    touch(root / "recordings" / "notes.wav")
    return root


def index_of(file: File) -> int:
    return int(Path(file.name).stem.split("_")[2])


def test_single_digits(tmp_path: Path) -> None:
    found = list(read("fsdd", fsdd_like(tmp_path)))
    assert len(found) == 56
    assert spoken("7_bob_5", "dev", (tmp_path / "recordings" / "7_bob_5.wav",), "seven", "bob") in found
    assert {r.split: {index_of(p) for s in found if s.split == r.split for p in s.files} for r in found} == {
        "test": set(range(5)),
        "dev": set(range(5, 10)),
        "train": set(range(10, 14)),
    }


def test_digit_strings_never_mix_speakers_or_splits(tmp_path: Path) -> None:
    counts = {"train": 60, "dev": 10, "test": 20}
    found = list(read("fsdd", fsdd_like(tmp_path), max_digits=5, counts=counts, seed=3))
    assert Counter(r.split for r in found) == counts and len({r.id for r in found}) == 90
    assert {len(r.files) for r in found} == {1, 2, 3, 4, 5}
    bounds = {"test": range(5), "dev": range(5, 10), "train": range(10, 14)}
    for r in found:
        assert {p.name.split("_")[1] for p in r.files} == {r.speaker}
        assert all(index_of(p) in bounds[r.split] for p in r.files)
        assert r.text == " ".join(DIGITS[int(p.name[0])] for p in r.files)
    assert list(read("fsdd", tmp_path, max_digits=5, counts=counts, seed=3)) == found
    assert [r.text for r in read("fsdd", tmp_path, max_digits=5, counts=counts, seed=4)] != [r.text for r in found]
    more = list(read("fsdd", tmp_path, max_digits=5, counts=counts | {"train": 61}, seed=3))
    assert more[:60] == found[:60] and more[61:] == found[60:]


def test_digit_strings_need_recordings_and_a_length(tmp_path: Path) -> None:
    fsdd_like(tmp_path, n_indices=5)
    with pytest.raises(DataError, match="no recordings for train"):
        list(read("fsdd", tmp_path, max_digits=3))
    with pytest.raises(DataError, match="set max_digits above 1"):
        list(read("fsdd", tmp_path, counts={"train": 3}))
    with pytest.raises(DataError, match="max_digits: expected greater than or equal to 1"):
        list(read("fsdd", tmp_path, max_digits=0))


@pytest.mark.data
def test_the_real_fsdd(fsdd_root: Path) -> None:
    found = list(read("fsdd", fsdd_root))
    assert Counter(r.split for r in found) == {"train": 2400, "dev": 300, "test": 300}
    assert len({r.speaker for r in found}) == 6
