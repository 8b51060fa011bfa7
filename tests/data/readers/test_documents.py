"""Interleaved documents: segments in their order, whatever they hold; every mistake with line and segment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.corpora import touch
from zippkit.data.readers import read
from zippkit.data.readers.corpus import records_of
from zippkit.data.records import Picture, Sound
from zippkit.errors import DataError


def lines(path: Path, *documents: Any) -> Path:
    return touch(path, "".join(json.dumps(document) + "\n" for document in documents))


def test_segments_of_every_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones((2, 3)))
    segments = [
        {"text": "Listen: "},
        {"audio": "a.wav"},
        {"speech": ["b.wav", "c.wav"]},
        {"text": "look"},
        {"image": "d.png"},
        {"units": {"ids": [3, 1, 4]}},
        {"motion": {"features": "m.npy"}},
        {"bird": {"audio": "e.wav"}},
    ]
    file = lines(tmp_path / "test.jsonl", {"id": "x", "segments": segments, "speaker": "jo"})
    (record,) = read("documents", file)
    found = record.segments or ()
    assert (record.id, record.split, record.speaker, record.trouble) == ("x", "test", "jo", ())
    assert dict(record.items) == {}
    assert [(name, s) for name, s in found if not isinstance(s, np.ndarray)] == [
        ("text", "Listen: "),
        ("speech", Sound((tmp_path / "a.wav",))),
        ("speech", Sound((tmp_path / "b.wav", tmp_path / "c.wav"))),
        ("text", "look"),
        ("image", Picture(tmp_path / "d.png")),
        ("bird", Sound((tmp_path / "e.wav",))),
    ]
    arrays = [(name, s.tolist()) for name, s in found if isinstance(s, np.ndarray)]
    assert arrays == [("units", [3, 1, 4]), ("motion", [[1.0] * 3] * 2)]


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=9), min_size=1, max_size=5))
def test_order_and_number_are_kept(tmp_path_factory: pytest.TempPathFactory, documents: list[list[str]]) -> None:
    file = tmp_path_factory.mktemp("documents") / "d.jsonl"
    lines(file, *({"segments": [{name: {"text": f"{name}{i}"}} for i, name in enumerate(d)]} for d in documents))
    found = list(read("documents", file))
    expected = [tuple((name, f"{name}{i}") for i, name in enumerate(d)) for d in documents]
    assert [r.segments for r in found] == expected and len({r.id for r in found}) == len(documents)


def test_splits_are_told_by_the_line_then_the_file_then_drawn(tmp_path: Path) -> None:
    text = {"segments": [{"text": "a"}]}
    lines(tmp_path / "dev.jsonl", text, text | {"split": "validation"}, text | {"split": "odd"})
    lines(tmp_path / "stories.jsonl", text)
    found = [(r.id, r.split) for r in read("documents", tmp_path, fractions={"mine": 1.0})]
    assert found == [
        ("dev-000001", "dev"),
        ("dev-000002", "dev"),
        ("dev-000003", "odd"),
        ("stories-000001", "mine"),
    ]


def test_every_mistake_is_told_with_its_line_and_segment(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "d.jsonl",
        {"id": "ok", "segments": [{"units": {"ids": [9]}}, {"m": {"features": [[1.0, 2.0]]}}]},
        {"id": "none"},
        {"id": "empty", "segments": []},
        {"id": "odd", "segments": [{"text": "a", "audio": "b"}, "words", {"motion": [1]}, {"text": ""}]},
        {"id": "ids", "segments": [{"units": {"ids": [10]}}, {"units": {"ids": [-1]}}]},
        {"id": "width", "segments": [{"m": {"features": [[1.0]]}}, {"m": {"features": [[1.0, 2.0]]}}]},
        ["no object"],
    )
    found = {r.id: r.trouble for r in records_of("documents", file, {"vocab_size": {"units": 10}})}
    assert found == {
        "ok": (),
        "none": ("d.jsonl:2: no key 'segments'; valid: id",),
        "empty": ("d.jsonl:3: segments is [], expected a list of segments",),
        "odd": (
            "d.jsonl:4: segments[0]: {'text': 'a', 'audio': 'b'}, expected one modality and what it holds, "
            "as in {text: ...}",
            "d.jsonl:4: segments[1]: 'words', expected one modality and what it holds, as in {text: ...}",
            "d.jsonl:4: segments[2]: what motion holds is missing; expected {motion: {KIND: ...}}, "
            "KIND one of text, audio, image, ids, features",
            "d.jsonl:4: segments[3]: text is empty",
        ),
        "ids": (
            "d.jsonl:5: segments[0]: id 10 at index 0, expected 0 to 9",
            "units has id -1 at index 0, expected 0 or more",
        ),
        "width": ("m has frames of shape (1,), expected (2,) as in most others",),
        "d-000007": ("d.jsonl:7: a list, expected an object with keys",),
    }


def test_files_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json: no file here ends in \.jsonl"):
        list(read("documents", touch(tmp_path / "a.json")))
