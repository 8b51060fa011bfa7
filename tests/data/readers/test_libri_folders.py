"""Folders of speakers and chapters: nothing lost, clean and other apart, words where there are words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from helpers.corpora import touch
from zippkit.data.readers import read
from zippkit.errors import DataError


def test_librispeech(librispeech_root: Path) -> None:
    found = list(read("librispeech", librispeech_root))
    assert Counter(r.split for r in found) == {"train": 8, "dev-clean": 2, "test-other": 2}
    assert {(r.split, r.speaker) for r in found} == {("train", "10"), ("dev-clean", "20"), ("test-other", "20")}
    first = next(r for r in found if r.split == "train")
    assert (first.id, first.text) == ("10-7-tr0000", "zero three")
    assert all(isinstance(path, Path) and path.is_file() for r in found for path in r.files)


FOLDERS = (
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ("conditions", {**{name: name for name in FOLDERS[:4]}, **dict.fromkeys(FOLDERS[4:], "train")}),
        ("folders", {name: name for name in FOLDERS}),
        ("merged", {name: name.split("-")[0] for name in FOLDERS}),
    ],
)
@pytest.mark.parametrize(("kind", "suffix"), [("librispeech", "flac"), ("libritts", "wav")])
def test_splits(tmp_path: Path, kind: str, suffix: str, splits: str, expected: dict[str, str]) -> None:
    for folder in (*FOLDERS, "intro-disclaimers"):
        touch(tmp_path / folder / "1" / "2" / f"{folder}.{suffix}")
    assert {r.id: r.split for r in read(kind, tmp_path, splits=splits)} == expected
    some = ["test-other", "train-clean-100"]
    assert [r.id for r in read(kind, tmp_path, splits=splits, folders=some)] == some


def test_librispeech_loses_nothing_that_is_incomplete(librispeech_root: Path) -> None:
    chapter = librispeech_root / "dev-clean" / "20" / "7"
    (chapter / "20-7-de0000.flac").unlink()
    (chapter / "20-7.trans.txt").write_text("20-7-de0000 SAID BUT NOT HEARD\n")
    dev = [r for r in read("librispeech", librispeech_root) if r.split == "dev-clean"]
    assert [(r.id, r.text, Path(str(r.files[0])).is_file()) for r in dev] == [
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
    assert [(r.id, r.speaker, r.text, r.split) for r in read("libritts", tmp_path)] == [
        ("test-clean_000000", "84", "Go. Do you hear?", "test-clean"),
        ("test-clean_000001", "84", None, "test-clean"),
        ("train-clean-360_000000", "84", "Go. Do you hear?", "train"),
        ("train-clean-360_000001", "84", None, "train"),
    ]
    assert {r.text for r in read("libritts", tmp_path, text="original")} == {"GO", None}


def test_librilight_has_sound_alone_and_keeps_a_book_together(tmp_path: Path) -> None:
    for book in range(30):
        for cut in range(3):
            touch(tmp_path / "small" / f"{book % 4}" / f"book{book}" / f"chapter_{cut}.flac")
            touch(tmp_path / "small" / f"{book % 4}" / f"book{book}" / f"chapter_{cut}.json")
    found = list(read("librilight", tmp_path))
    assert len({r.id for r in found}) == 90 and {r.split for r in found} == {"train"}
    assert {tuple(r.items) for r in found} == {("speech",)} and {r.speaker for r in found} == {"0", "1", "2", "3"}
    drawn = list(read("librilight", tmp_path, fractions={"train": 0.5, "dev": 0.5}))
    by_book = {book: {r.split for r in drawn if f"/{book}/" in r.id} for book in {r.id.split("/")[2] for r in drawn}}
    assert len(by_book) == 30 and all(len(splits) == 1 for splits in by_book.values())
    assert {split for splits in by_book.values() for split in splits} == {"train", "dev"}


@pytest.mark.parametrize("kind", ["librispeech", "libritts"])
def test_a_root_too_deep_is_told(librispeech_root: Path, kind: str) -> None:
    with pytest.raises(DataError, match="no folder named train-"):
        list(read(kind, librispeech_root / "train-clean-100"))
    with pytest.raises(DataError, match="none: no such folder"):
        list(read(kind, librispeech_root / "none"))
    with pytest.raises(DataError, match=r"20-7\.trans\.txt: a file; expected the folder of the corpus"):
        list(read(kind, librispeech_root / "dev-clean" / "20" / "7" / "20-7.trans.txt"))


def test_every_folder_that_is_not_there_is_named(librispeech_root: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(read("librispeech", librispeech_root, folders=["dev-claen", "test-other", "train-clean-360"]))
    assert str(caught.value).splitlines() == [
        f"{librispeech_root}: no folder 'dev-claen'; did you mean 'dev-clean'?",
        f"{librispeech_root}: no folder 'train-clean-360'; did you mean 'train-clean-100'?",
    ]
