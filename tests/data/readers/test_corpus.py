"""Readers by name: options told all at once, and what is wrong with records found over the corpus as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.plugins import register
from helpers.tiny_runs import zippkit
from zippkit.data.readers import read
from zippkit.data.readers.base import Reader, open_reader
from zippkit.data.readers.corpus import records_of
from zippkit.data.records import Record, in_order
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict


class Colours(Reader[Strict]):
    layout: ClassVar[str] = "<id>.colour"

    def read(self, root: Path) -> Iterator[Record]:
        yield from (Record(path.stem, "train", {"text": path.stem}) for path in sorted(root.glob("*.colour")))


class NoReader:
    pass


def test_readers_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no reader of kind 'librispeach' is registered; did you mean 'librispeech'"
    ) as e:
        open_reader("librispeach")
    assert "looked among the entry points `zippkit.readers` of the installed packages" in str(e.value)


def test_readers_are_listed_with_their_package() -> None:
    listed = {line.split()[0]: line.split()[1] for line in zippkit("readers").stdout.splitlines()}
    assert {"librispeech", "libritts", "librilight", "pairs", "fsdd", "handwritten"} <= listed.keys()
    assert set(listed.values()) == {"zippkit"}
    assert {"kind": "pairs", "package": "zippkit", "class": "zippkit.data.readers.file_pairs:Pairs"} in json.loads(
        zippkit("readers", "--json").stdout
    )


def test_every_wrong_option_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read("fsdd", tmp_path, max_digit=3, counts=[1], seed=-1)
    assert str(caught.value).splitlines() == [
        "reader fsdd: counts: expected a mapping, got [1]",
        "reader fsdd: seed: expected greater than or equal to 0, got -1",
        "reader fsdd: max_digit: unknown key 'max_digit'; did you mean 'max_digits'?",
    ]


def test_a_strangers_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(tmp_path, monkeypatch, "zippkit.readers", colours=Colours, odd=NoReader)
    (tmp_path / "red.colour").touch()
    assert [r.text for r in records_of("colours", tmp_path)] == ["red"]
    with pytest.raises(DataError, match=re.escape("site: no records of the kind colours; looked for <id>.colour")):
        records_of("colours", tmp_path / "site")
    with pytest.raises(DataError, match=r"reader kind 'odd' is .*NoReader.*, expected a subclass of Reader"):
        open_reader("odd")


def test_a_function_reads_too(tmp_path: Path) -> None:
    def told(root: Path, count: int = 1) -> Iterator[Record]:
        yield from (Record(f"{root.name}{i}", "train", {"text": "a"}) for i in range(count))

    assert len(records_of(told, tmp_path, {"count": 3})) == 3
    with pytest.raises(DataError, match="reader told has no option 'cuont'; did you mean 'count'"):
        records_of(told, tmp_path, {"cuont": 3})
    with pytest.raises(DataError, match=r"no records of the kind told$"):
        records_of(told, tmp_path, {"count": 0})


def held(*sources: object) -> list[tuple[str, ...]]:
    """The trouble of each of several records, which hold these under ``x``."""
    records = [Record(str(i), "train", {"x": source}) for i, source in enumerate(sources)]  # type: ignore[dict-item]
    return [r.trouble for r in records_of(lambda root: records, "")]


FRAMES = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (np.zeros((4, 2), np.float32), r"x has frames of shape (2,), expected (3,) as in most others"),
        (np.zeros(4, np.float32), r"x has frames of shape (), expected (3,) as in most others"),
        (FRAMES + np.nan, "x has nan at [0, 0], expected finite numbers"),
        (np.zeros(4, np.int64), "x is ids, expected features as in most others"),
        ("words", "x is text, expected features as in most others"),
        (FRAMES.astype(complex), "x is an array of complex128 of shape (4, 3), expected integers, or frames of floats"),
    ],
)
def test_the_odd_one_out_is_named(odd: object, message: str) -> None:
    assert held(odd, FRAMES, FRAMES, np.ones((9, 3))) == [(message,), (), (), ()]


def test_ids_are_whole_numbers_from_0() -> None:
    good = np.arange(3)
    assert held(good, np.array([4, -2]), good, np.zeros((1, 2, 2), int)) == [
        (),
        ("x has id -2 at index 1, expected 0 or more",),
        (),
        ("x is an array of integers of shape (1, 2, 2), expected ids in one dimension",),
    ]


def test_segments_are_looked_at_as_items_are() -> None:
    good = Record("a", "train", segments=(("m", FRAMES), ("text", "b"), ("m", FRAMES)))
    bad = replace(good, id="b", segments=(("text", "b"), ("m", FRAMES[:, :1])), trouble=("known",))
    assert [r.trouble for r in records_of(lambda root: [good, bad], "")] == [
        (),
        ("known", "m has frames of shape (1,), expected (3,) as in most others"),
    ]


@given(st.lists(st.sampled_from(["train", "dev", "test", "test-other", "dev-clean", "train-b", "more", "tests"])))
def test_splits_stand_in_their_order(names: list[str]) -> None:
    places = {name: i for i, name in enumerate(in_order(names))}
    assert places.keys() == set(names)
    expected = ["train", "train-b", "dev", "dev-clean", "test", "test-other", "more", "tests"]
    assert list(places) == [name for name in expected if name in places]
