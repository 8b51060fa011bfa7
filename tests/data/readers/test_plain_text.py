"""Plain text: no word is lost or added, however it is cut; files stay in their splits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.corpora import touch
from zippkit.data.readers import read
from zippkit.data.readers.corpus import records_of
from zippkit.data.readers.plain_text import cut
from zippkit.errors import DataError

BOOK = "A first\nparagraph.\n\n\n  Another one.  \n \nLast"


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("paragraph", ["A first paragraph.", "Another one.", "Last"]),
        ("line", ["A first", "paragraph.", "Another one.", "Last"]),
        ("file", [BOOK]),
    ],
)
def test_what_an_example_is(tmp_path: Path, by: str, expected: list[str]) -> None:
    file = touch(tmp_path / "book.txt", f"\n{BOOK}\n")
    for root in (file, tmp_path):
        found = list(read("text", root, by=by))
        assert [r.text for r in found] == expected
        assert [r.id for r in found] == [f"book-{n:06d}" for n in range(1, len(found) + 1)]


@given(st.text("ab .!?\n”", max_size=60), st.integers(1, 6))
def test_pieces_hold_every_word_once_and_not_too_many(text: str, max_words: int) -> None:
    pieces = list(cut(text, max_words))
    assert " ".join(pieces).split() == text.split()
    assert all(1 <= len(piece.split()) <= max_words for piece in pieces)


def test_sentences_stay_whole_while_they_fit(tmp_path: Path) -> None:
    touch(tmp_path / "a.txt", "One two. Three four five. Six seven eight nine ten eleven. “Twelve.” Thirteen")
    assert [r.text for r in read("text", tmp_path, max_words=5)] == [
        "One two. Three four five.",
        "Six seven eight nine ten",
        "eleven. “Twelve.” Thirteen",
    ]


def test_files_and_folders_are_splits_where_they_say_so(tmp_path: Path) -> None:
    for place in ("train/a.txt", "valid/deep/b.txt", "test-odd.txt", "c.txt", "d.md"):
        touch(tmp_path / place, "words")
    found = {r.id: r.split for r in read("text", tmp_path, fractions={"more": 1.0})}
    assert found == {
        "train/a-000001": "train",
        "valid/deep/b-000001": "dev",
        "test-odd-000001": "test-odd",
        "c-000001": "more",
    }
    files = {"test": ["c.txt", "deep/*.txt"]}
    given_files = {r.id: r.split for r in read("text", tmp_path, files=files)}
    assert given_files["c-000001"] == given_files["valid/deep/b-000001"] == "test"
    assert [r.id for r in read("text", tmp_path, pattern="*.md")] == ["d-000001"]
    with pytest.raises(DataError, match=r"files\.dev: no file is like 'x\*'\n.*files\.test: no file is like 'y\.txt'"):
        list(read("text", tmp_path, files={"dev": ["x*", "c.txt"], "test": ["y.txt"]}))


def test_a_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no records of the kind text; looked for a text file, or \*\.txt"):
        records_of("text", tmp_path)
    with pytest.raises(DataError, match="none: no such file or folder"):
        records_of("text", tmp_path / "none")


@pytest.mark.data
def test_the_real_books(books: Path) -> None:
    unseen = ["*thirty-nine-steps.txt", "*time-machine.txt", "*jungle-book.txt", "*call-of-the-wild.txt"]
    options = {"files": {"test": unseen}, "fractions": {"train": 0.99, "dev": 0.01}, "max_words": 60}
    found = list(read("text", books, **options))
    counts = Counter(r.split for r in found)
    assert counts["train"] > 60_000 and counts["dev"] > 500 and counts["test"] > 2_000
    assert max(len(str(r.text).split()) for r in found) == 60
    assert {r.id.rpartition("-")[0] for r in found if r.split == "test"} >= {"h-g-wells_the-time-machine"}
