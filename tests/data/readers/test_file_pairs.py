"""Sound files beside text files: readings of a prompt stay together, whatever is drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from helpers.corpora import touch
from zippkit.data.readers import read
from zippkit.errors import DataError

HALVES = {"train": 0.5, "dev": 0.25, "test": 0.25}


def test_pairs_keep_readings_of_a_prompt_together(tmp_path: Path) -> None:
    for index in range(300):
        touch(tmp_path / "kim" / f"{index}.wav")
        touch(tmp_path / "kim" / f"{index}.txt", f"Prompt, {index // 3}." if index % 3 else f"prompt {index // 3}")
    touch(tmp_path / "kim" / "untold.flac")
    found = list(read("pairs", tmp_path, fractions=HALVES))
    splits = {r.id: r.split for r in found}
    assert all(len({splits[f"kim/{3 * p + i}"] for i in range(3)}) == 1 for p in range(100))
    counts = Counter(splits.values())
    assert 120 < counts["train"] < 180 and 45 < counts["dev"] < 105 and 45 < counts["test"] < 105
    assert {r.speaker for r in found} == {"kim"} and next(r for r in found if r.id == "kim/untold").text is None
    assert list(read("pairs", tmp_path, fractions=HALVES)) == found
    assert [r.split for r in read("pairs", tmp_path, fractions=HALVES, seed=1)] != [*splits.values()]
    only = read("pairs", tmp_path, fractions={"train": 1.0}, speaker="jo")
    assert {(r.speaker, r.split) for r in only} == {("jo", "train")}


def test_fractions_must_add_up(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"reader pairs: fractions: fractions add up to 0\.8, expected 1"):
        read("pairs", tmp_path, fractions={"train": 0.8})
    with pytest.raises(DataError, match="a fraction is negative"):
        read("pairs", tmp_path, fractions={"train": 1.5, "dev": -0.5})


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 \(unexpected end of data at byte 3\)"):
        list(read("pairs", tmp_path))


@pytest.mark.data
def test_the_real_kathleen(kathleen: Path) -> None:
    found = list(read("pairs", kathleen))
    assert len(found) == 1620 and {r.speaker for r in found} == {"kathleen"}
    texts = {split: {r.text for r in found if r.split == split} for split in ("train", "dev", "test")}
    assert not texts["train"] & texts["dev"] | texts["train"] & texts["test"] | texts["dev"] & texts["test"]
    assert min(len(texts["dev"]), len(texts["test"])) > 30
