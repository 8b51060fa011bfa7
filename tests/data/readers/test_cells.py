"""Cells as sound, pictures, text, ids and frames: the same numbers however they are written, mistakes by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zippkit.data.readers.cells import Cell, cells_of
from zippkit.data.records import Picture, Sound
from zippkit.errors import DataError

BASE = Path("base")


def cell(kind: Any, **settings: Any) -> Cell:
    return Cell(column="c", kind=kind, **settings)


@given(st.lists(st.integers(0, 9999), max_size=8))
def test_ids_are_the_same_however_they_are_written(ids: list[int]) -> None:
    written: list[Any] = [ids, np.array(ids, np.int32), json.dumps(ids), [float(i) for i in ids]]
    written += [" ".join(map(str, ids)), ",".join(map(str, ids))] if ids else []
    for value in written:
        found = cell("ids").source(value, BASE)
        assert isinstance(found, np.ndarray) and found.dtype == np.int64 and found.tolist() == ids


def test_frames_come_from_lists_text_and_files(tmp_path: Path) -> None:
    frames = np.arange(6, dtype=np.float64).reshape(3, 2) / 4
    np.save(tmp_path / "a.npy", frames)
    for value in (frames.tolist(), json.dumps(frames.tolist()), "a.npy"):
        found = cell("features", width=2).source(value, tmp_path)
        assert isinstance(found, np.ndarray) and found.dtype == np.float32
        np.testing.assert_array_equal(found, frames)


def test_files_are_named_and_not_opened() -> None:
    assert cell("audio").source("a.wav", BASE) == Sound((BASE / "a.wav",))
    assert cell("audio").source(["a.wav", " b.wav"], BASE) == Sound((BASE / "a.wav", BASE / "b.wav"))
    assert cell("audio").source("/elsewhere/a.wav", BASE) == Sound((Path("/elsewhere/a.wav"),))
    assert cell("image").source({"path": "a.png", "bytes": None}, BASE) == Picture(BASE / "a.png")
    held = cell("image").source({"path": "x/a.png", "bytes": b"PNG"}, BASE)
    assert isinstance(held, Picture) and (held.file.name, held.file.read_bytes()) == ("a.png", b"PNG")


@pytest.mark.parametrize("kind", ["text", "audio", "image", "ids", "features"])
@pytest.mark.parametrize("empty", [None, "", "  "])
def test_an_empty_cell_holds_nothing(kind: str, empty: str | None) -> None:
    assert cell(kind).source(empty, BASE) is None


@pytest.mark.parametrize(
    ("given_cell", "value", "message"),
    [
        (cell("text"), 3, "3, expected text"),
        (cell("audio"), 3, "3, expected the path of a file"),
        (cell("audio"), [], "0 files, expected one or more"),
        (cell("image"), ["a.png", "b.png"], "2 files, expected one"),
        (cell("ids"), [1, 2.5], "id 2.5 at index 1, expected whole numbers"),
        (cell("ids"), [float("nan")], "id nan at index 0, expected whole numbers"),
        (cell("ids", vocab_size=9), [1, 9], "id 9 at index 1, expected 0 to 8"),
        (cell("ids"), "one two", "'one two', expected numbers between spaces, or a list"),
        (cell("ids"), [True], "[True], expected numbers"),
        (cell("ids"), {"a": 1}, "{'a': 1}, expected a list of numbers, or the path of a .npy file"),
        (cell("features"), [[1.0], [1.0, 2.0]], "a list of lists of different lengths, expected frames of one shape"),
        (cell("features", width=3), [[1.0, 2.0]], "frames of shape (2,), expected 3 numbers in each"),
        (cell("features", width=3), [1.0, 2.0], "frames of shape (), expected 3 numbers in each"),
        (cell("features"), "none.npy", "none.npy: no such file"),
        (cell("features"), ["x"], "['x'], expected numbers"),
    ],
)
def test_what_cannot_be_is_told(given_cell: Cell, value: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        given_cell.source(value, BASE)
    assert message in str(caught.value)


def test_a_file_that_is_no_array(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"words")
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    for name in ("a.npy", "b.npy"):
        with pytest.raises(DataError, match=rf"{name}: not a readable array"):
            cell("features").source(name, tmp_path)


def test_the_kind_follows_from_usual_names_only() -> None:
    found = cells_of({"text": "words", "speech": Cell(column="file"), "motion": Cell(column="m", kind="features")})
    assert {name: c.kind for name, c in found.items()} == {"text": "text", "speech": "audio", "motion": "features"}
    with pytest.raises(DataError) as caught:
        cells_of({"motion": "m", "units": "u", "text": "t"})
    assert [line.split(";")[0] for line in str(caught.value).splitlines()] == [
        "columns.motion: what it holds is missing",
        "columns.units: what it holds is missing",
    ]
