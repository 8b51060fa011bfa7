"""Corpora as they lie on disk: nothing lost, speakers and splits right, test recordings never in training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from zippkit.data.readers import DIGITS, fsdd, librispeech, libritts, pairs, reader
from zippkit.data.records import spoken
from zippkit.errors import DataError


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def fsdd_like(root: Path, speakers: tuple[str, ...] = ("ann", "bob"), n_indices: int = 14) -> Path:
    for speaker in speakers:
        for index in range(n_indices):
            for digit in (2, 7):
                touch(root / "recordings" / f"{digit}_{speaker}_{index}.wav")
    touch(root / "recordings" / "notes.wav")
    return root


def index_of(path: Path) -> int:
    return int(path.stem.split("_")[2])


def test_librispeech(librispeech_root: Path) -> None:
    found = list(librispeech(librispeech_root))
    assert Counter(r.split for r in found) == {"train": 8, "dev": 2, "test": 2}
    assert {(r.split, r.speaker) for r in found} == {("train", "10"), ("dev", "20"), ("test", "20")}
    first = next(r for r in found if r.split == "train")
    assert (first.id, first.text) == ("10-7-tr0000", "zero three")
    assert all(path.is_file() for r in found for path in r.files)


def test_librispeech_loses_nothing_that_is_incomplete(librispeech_root: Path) -> None:
    chapter = librispeech_root / "dev-clean" / "20" / "7"
    (chapter / "20-7-de0000.flac").unlink()
    (chapter / "20-7.trans.txt").write_text("20-7-de0000 SAID BUT NOT HEARD\n")
    dev = [r for r in librispeech(librispeech_root) if r.split == "dev"]
    assert [(r.id, r.text, r.files[0].is_file()) for r in dev] == [
        ("20-7-de0000", "SAID BUT NOT HEARD", False),
        ("20-7-de0001", None, True),
    ]


def test_libritts(tmp_path: Path) -> None:
    for split in ("train-clean-360", "test-clean"):
        chapter = tmp_path / split / "84" / "121123"
        touch(chapter / f"{split}_000000.wav")
        touch(chapter / f"{split}_000000.normalized.txt", "Go. Do you hear?\n")
        touch(chapter / f"{split}_000000.original.txt", "GO")
        touch(chapter / f"{split}_000001.wav")
    assert [(r.id, r.speaker, r.text, r.split) for r in libritts(tmp_path)] == [
        ("test-clean_000000", "84", "Go. Do you hear?", "test"),
        ("test-clean_000001", "84", None, "test"),
        ("train-clean-360_000000", "84", "Go. Do you hear?", "train"),
        ("train-clean-360_000001", "84", None, "train"),
    ]


def test_pairs_keep_readings_of_a_prompt_together(tmp_path: Path) -> None:
    for index in range(300):
        touch(tmp_path / "kim" / f"{index}.wav")
        touch(tmp_path / "kim" / f"{index}.txt", f"Prompt, {index // 3}." if index % 3 else f"prompt {index // 3}")
    touch(tmp_path / "kim" / "untold.flac")
    found = list(pairs(tmp_path, {"train": 0.5, "dev": 0.25, "test": 0.25}))
    splits = {r.id: r.split for r in found}
    assert all(len({splits[f"kim/{3 * p + i}"] for i in range(3)}) == 1 for p in range(100))
    counts = Counter(splits.values())
    assert 120 < counts["train"] < 180 and 45 < counts["dev"] < 105 and 45 < counts["test"] < 105
    assert {r.speaker for r in found} == {"kim"} and next(r for r in found if r.id == "kim/untold").text is None
    assert list(pairs(tmp_path, {"train": 0.5, "dev": 0.25, "test": 0.25})) == found
    assert [r.split for r in pairs(tmp_path, {"train": 0.5, "dev": 0.25, "test": 0.25}, seed=1)] != [*splits.values()]
    assert {(r.speaker, r.split) for r in pairs(tmp_path, {"train": 1.0}, speaker="jo")} == {("jo", "train")}


def test_fractions_must_add_up(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"add up to 0\.8, expected 1"):
        list(pairs(tmp_path, {"train": 0.8}))


def test_single_digits(tmp_path: Path) -> None:
    found = list(fsdd(fsdd_like(tmp_path)))
    assert len(found) == 56
    assert spoken("7_bob_5", "dev", (tmp_path / "recordings" / "7_bob_5.wav",), "seven", "bob") in found
    assert {r.split: {index_of(p) for s in found if s.split == r.split for p in s.files} for r in found} == {
        "test": set(range(5)),
        "dev": set(range(5, 10)),
        "train": set(range(10, 14)),
    }


def test_digit_strings_never_mix_speakers_or_splits(tmp_path: Path) -> None:
    counts = {"train": 60, "dev": 10, "test": 20}
    found = list(fsdd(fsdd_like(tmp_path), max_digits=5, counts=counts, seed=3))
    assert Counter(r.split for r in found) == counts and len({r.id for r in found}) == 90
    assert {len(r.files) for r in found} == {1, 2, 3, 4, 5}
    bounds = {"test": range(5), "dev": range(5, 10), "train": range(10, 14)}
    for r in found:
        assert {p.stem.split("_")[1] for p in r.files} == {r.speaker}
        assert all(index_of(p) in bounds[r.split] for p in r.files)
        assert r.text == " ".join(DIGITS[int(p.name[0])] for p in r.files)
    assert list(fsdd(tmp_path, max_digits=5, counts=counts, seed=3)) == found
    assert [r.text for r in fsdd(tmp_path, max_digits=5, counts=counts, seed=4)] != [r.text for r in found]
    more = list(fsdd(tmp_path, max_digits=5, counts=counts | {"train": 61}, seed=3))
    assert more[:60] == found[:60] and more[61:] == found[60:]


def test_digit_strings_need_recordings_and_a_length(tmp_path: Path) -> None:
    fsdd_like(tmp_path, n_indices=5)
    with pytest.raises(DataError, match="no recordings for train"):
        list(fsdd(tmp_path, max_digits=3))
    with pytest.raises(DataError, match="set max_digits above 1"):
        list(fsdd(tmp_path, counts={"train": 3}))
    with pytest.raises(DataError, match="max_digits is 0"):
        list(fsdd(tmp_path, max_digits=0))


@pytest.mark.data
def test_the_real_fsdd(fsdd_root: Path) -> None:
    found = list(fsdd(fsdd_root))
    assert Counter(r.split for r in found) == {"train": 2400, "dev": 300, "test": 300}
    assert len({r.speaker for r in found}) == 6


@pytest.mark.data
def test_the_real_kathleen(kathleen: Path) -> None:
    found = list(pairs(kathleen))
    assert len(found) == 1620 and {r.speaker for r in found} == {"kathleen"}
    texts = {split: {r.text for r in found if r.split == split} for split in ("train", "dev", "test")}
    assert not texts["train"] & texts["dev"] | texts["train"] & texts["test"] | texts["dev"] & texts["test"]
    assert min(len(texts["dev"]), len(texts["test"])) > 30


@pytest.mark.parametrize("read", [librispeech, libritts])
def test_a_root_too_deep_is_told(librispeech_root: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(DataError, match="no folder named train-"):
        list(read(librispeech_root / "train-clean-100"))
    with pytest.raises(DataError, match="none: no such folder"):
        list(read(librispeech_root / "none"))


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 \(unexpected end of data at byte 3\)"):
        list(pairs(tmp_path))


def test_readers_by_name() -> None:
    assert reader("pairs") is pairs
    with pytest.raises(DataError, match="no corpus kind 'librispeach'; did you mean 'librispeech'"):
        reader("librispeach")
