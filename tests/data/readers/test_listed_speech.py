"""LJSpeech and Common Voice: words from the table, sound from its folder, rows that are odd told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from helpers.corpora import touch
from zippkit.data.readers import read
from zippkit.data.records import Sound
from zippkit.errors import DataError


def test_ljspeech(tmp_path: Path) -> None:
    lines = ['LJ1-1|Dr. 4 "x|Doctor four "x', "LJ1-2|in 1999", "LJ1-3|a|b|c"]
    touch(tmp_path / "metadata.csv", "\n".join(lines))
    found = list(read("ljspeech", tmp_path, fractions={"train": 1.0}))
    assert [(r.id, r.text, r.speaker, r.split) for r in found[:2]] == [
        ("LJ1-1", 'Doctor four "x', "LJ", "train"),
        ("LJ1-2", "in 1999", "LJ", "train"),
    ]
    assert found[0].items["speech"] == Sound((tmp_path / "wavs" / "LJ1-1.wav",))
    assert [r.trouble for r in found] == [(), (), ("metadata.csv:3: 4 cells, expected 3",)]
    original = list(read("ljspeech", tmp_path, text="original", speaker="linda"))
    assert [(r.text, r.speaker) for r in original[:2]] == [('Dr. 4 "x', "linda"), ("in 1999", "linda")]


def test_ljspeech_draws_splits_from_the_words(tmp_path: Path) -> None:
    touch(tmp_path / "metadata.csv", "".join(f"{i}|x|Prompt {i // 2}.\n" for i in range(200)))
    found = list(read("ljspeech", tmp_path, fractions={"train": 0.5, "dev": 0.5}))
    assert all(found[2 * i].split == found[2 * i + 1].split for i in range(100))
    assert min(Counter(r.split for r in found).values()) > 60


def test_commonvoice(tmp_path: Path) -> None:
    heading = "client_id\tpath\tsentence\tup_votes\n"
    touch(tmp_path / "train.tsv", f'{heading}me\tone.mp3\tSo "we go.\t2\nyou\ttwo\tYes\t1\n')
    touch(tmp_path / "dev.tsv", f"{heading}she\tthree.mp3\t\t2\n")
    touch(tmp_path / "test.tsv", heading)
    touch(tmp_path / "other.tsv", f"{heading}he\tfour.mp3\tNo\t0\n")
    clips = tmp_path / "clips"
    assert [(r.id, r.speaker, r.text, r.files, r.split) for r in read("commonvoice", tmp_path)] == [
        ("one", "me", 'So "we go.', (clips / "one.mp3",), "train"),
        ("two", "you", "Yes", (clips / "two.mp3",), "train"),
        ("three", "she", "", (clips / "three.mp3",), "dev"),
    ]
    assert [(r.id, r.split) for r in read("commonvoice", tmp_path, tables=["other"])] == [("four", "other")]
    with pytest.raises(DataError, match=r"no tset\.tsv; did you mean 'test'\?; looked for train\.tsv, dev\.tsv"):
        list(read("commonvoice", tmp_path, tables=["tset"]))
    with pytest.raises(DataError, match=r"train\.tsv: no column 'text'; .*\n.*dev\.tsv: no column 'text'"):
        list(read("commonvoice", tmp_path, text="text"))


def test_a_corpus_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metadata\.csv: no such file; looked for metadata\.csv with lines id\|text"):
        list(read("ljspeech", tmp_path))
    with pytest.raises(DataError, match=r"no train\.tsv; there are none; looked for train\.tsv"):
        list(read("commonvoice", tmp_path))
