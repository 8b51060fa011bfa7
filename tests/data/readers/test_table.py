"""Tables in four forms: the same records, columns told by name, every row that cannot be used with its line."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.corpora import touch
from helpers.sounds import tone
from zippkit.data.audio import write_audio
from zippkit.data.prepare import prepare
from zippkit.data.readers import read
from zippkit.data.readers.corpus import records_of
from zippkit.data.records import Record, Sound
from zippkit.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"id": "a", "words": 'He said "no", twice', "file": "a.wav", "ids": [3, 1], "who": "jo", "split": "train"},
    {"id": "b", "words": "", "file": "b.wav", "ids": [2], "who": "", "split": "validation"},
    {"id": "c", "words": "see", "file": "", "ids": [], "who": "al", "split": "test-odd"},
]
COLUMNS = {"text": "words", "speech": "file", "units": {"column": "ids", "kind": "ids"}}


def written(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    if path.suffix == ".jsonl":
        return touch(path, "".join(json.dumps(row) + "\n" for row in rows))
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows({key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows)
    return path


def plain(record: Record) -> tuple[Any, ...]:
    items = {name: s.tolist() if isinstance(s, np.ndarray) else s for name, s in record.items.items()}
    return record.id, record.split, record.speaker, items, record.trouble


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_four_forms_of_one_table(tmp_path: Path, suffix: str) -> None:
    table = written(tmp_path / f"mine{suffix}")
    for root in (table, tmp_path):
        found = list(read("table", root, columns=COLUMNS, speaker="who", folder="sounds"))
        sounds = [Sound((tmp_path / "sounds" / name,)) for name in ("a.wav", "b.wav")]
        assert [plain(r) for r in found] == [
            ("a", "train", "jo", {"text": 'He said "no", twice', "speech": sounds[0], "units": [3, 1]}, ()),
            ("b", "dev", "", {"speech": sounds[1], "units": [2]}, ()),
            ("c", "test-odd", "al", {"text": "see", "units": []}, ()),
        ]


def test_files_are_splits_or_splits_are_drawn_from_the_words(tmp_path: Path) -> None:
    rows = [{"text": f"prompt {i // 2}"} for i in range(100)]
    for name in ("train", "valid", "test-other"):
        written(tmp_path / f"{name}.csv", rows[:2])
    found = list(read("table", tmp_path))
    assert Counter(r.split for r in found) == {"train": 2, "dev": 2, "test-other": 2}
    assert [r.id for r in found][:3] == ["test-other-000002", "test-other-000003", "train-000002"]
    told = written(tmp_path / "told" / "train.jsonl", [{"text": "a", "split": "val"}, {"text": "b"}])
    assert [r.split for r in read("table", told)] == ["dev", "train"]
    drawn = list(read("table", written(tmp_path / "all.jsonl", rows), fractions={"train": 0.5, "test": 0.5}))
    assert len({r.split for r in drawn}) == 2
    assert all(drawn[2 * i].split == drawn[2 * i + 1].split for i in range(50))


def test_columns_that_are_missing_are_all_named(tmp_path: Path) -> None:
    written(tmp_path / "a.csv")
    written(tmp_path / "b.csv", [{"words": "x", "path": "y"}])
    with pytest.raises(DataError) as caught:
        list(read("table", tmp_path, columns={"text": "wrods", "speech": "file"}, id="id", speaker="speakr"))
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/a.csv: no column 'wrods'; did you mean 'words'?",
        f"{tmp_path}/a.csv: no column 'speakr'; valid: file, id, ids, split, who, words",
        f"{tmp_path}/b.csv: no column 'wrods'; did you mean 'words'?",
        f"{tmp_path}/b.csv: no column 'file'; valid: path, words",
        f"{tmp_path}/b.csv: no column 'id'; valid: path, words",
        f"{tmp_path}/b.csv: no column 'speakr'; valid: path, words",
    ]
    with pytest.raises(DataError, match=r"nobody says which columns hold what; .* some of id, words, file, ids, who"):
        list(read("table", tmp_path / "a.csv"))


def test_every_row_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    lines = [
        {"id": "good", "ids": [1, 2], "motion": [[0.0, 1.0]]},
        {"id": "two", "ids": [1, -2], "motion": [[0.0, 1.0]]},
        {"id": "three", "ids": [1.5], "motion": [[0.0, float("nan")]]},
        {"id": "four", "ids": [12], "motion": [[0.0, 1.0, 2.0]]},
        {"id": "five"},
    ]
    table = touch(tmp_path / "t.jsonl", "\n".join([*map(json.dumps, lines), "{no", "[1]"]))
    columns = {
        "units": {"column": "ids", "kind": "ids", "vocab_size": 10},
        "motion": {"column": "motion", "kind": "features"},
    }
    found = {r.id: r.trouble for r in records_of("table", table, {"columns": columns})}
    assert found == {
        "good": (),
        "two": ("units has id -2 at index 1, expected 0 or more",),
        "three": (
            "t:3: ids: id 1.5 at index 0, expected whole numbers",
            "motion has nan at [0, 1], expected finite numbers",
        ),
        "four": (
            "t:4: ids: id 12 at index 0, expected 0 to 9",
            "motion has frames of shape (3,), expected (2,) as in most others",
        ),
        "five": ("t:5: nothing in the columns that it is read from",),
        "t-000006": found["t-000006"],
        "t-000007": ("t:7: a list, expected an object with keys",),
    }
    assert found["t-000006"][0].startswith("t:6: not JSON (")


def test_rows_too_long_and_files_that_are_no_tables(tmp_path: Path) -> None:
    table = touch(tmp_path / "t.csv", 'text,id\n"two\nlines",a\n\nb,c,d\ne\n')
    found = list(read("table", table))
    assert [(r.id, r.text) for r in found] == [("a", "two\nlines"), ("t-000005", None), ("t-000006", "e")]
    assert found[1].trouble == ("t:5: 3 cells, expected 2",)
    (tmp_path / "b.csv").write_bytes(b"text\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"b\.csv: not UTF-8 \(invalid continuation byte\)"):
        list(read("table", tmp_path / "b.csv"))
    with pytest.raises(DataError, match=r"l\.csv:2: field larger than field limit.*; write long cells as JSONL"):
        list(read("table", touch(tmp_path / "l.csv", f"text\n{'a' * 140_000}\n")))
    touch(tmp_path / "c.parquet", "words")
    with pytest.raises(DataError, match=r"c\.parquet: not a readable Parquet file"):
        list(read("table", tmp_path / "c.parquet"))
    touch(tmp_path / "d.xlsx")
    with pytest.raises(DataError, match=r"d\.xlsx: no file here ends in \.csv, \.jsonl, \.parquet, \.tsv"):
        list(read("table", tmp_path / "d.xlsx"))
    with pytest.raises(DataError, match="none: no such file or folder"):
        list(read("table", tmp_path / "none"))
    with pytest.raises(DataError, match=r"e\.csv: no records of the kind table; looked for a file that ends in \.csv"):
        records_of("table", touch(tmp_path / "e.csv", "text\n"))


def test_prepare_tells_all_of_it_and_writes_nothing(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tone(0.3, 1), 8000)
    write_audio(tmp_path / "b.wav", tone(0.3, 1, rate=16_000), 16_000)
    frames = [[0.0, 1.0]]
    rows = [
        {"id": "good", "speech": "a.wav", "motion": frames, "ids": [1]},
        {"id": "rate", "speech": "b.wav", "motion": frames, "ids": [1]},
        {"id": "gone", "speech": "c.wav", "motion": frames, "ids": [1]},
        {"id": "width", "speech": "a.wav", "motion": [[0.0]], "ids": [1]},
        {"id": "minus", "speech": "a.wav", "motion": frames, "ids": [-1]},
        {"id": "half", "speech": "a.wav", "motion": frames, "ids": [0.5]},
        {"id": "beyond", "speech": "a.wav", "motion": frames, "ids": [9]},
        {"id": "good", "speech": "a.wav", "motion": frames, "ids": [2]},
    ]
    table = written(tmp_path / "train.jsonl", rows)
    columns = {
        "speech": "speech",
        "motion": {"column": "motion", "kind": "features"},
        "units": {"column": "ids", "kind": "ids", "vocab_size": 9},
    }
    with pytest.raises(DataError) as caught:
        prepare("table", table, tmp_path / "out", waveform=8000, options={"columns": columns})
    lines = str(caught.value).splitlines()
    assert "7 of 8" in lines[0] and len(lines) == 8
    for id_, reason in {
        "rate": "16000 Hz, expected 8000",
        "gone": "c.wav: no such file",
        "width": "motion has frames of shape (1,), expected (2,) as in most others",
        "minus": "units has id -1 at index 0",
        "half": "train:6: ids: id 0.5 at index 0, expected whole numbers",
        "beyond": "train:7: ids: id 9 at index 0, expected 0 to 8",
        "good": "the same id",
    }.items():
        assert any(line.startswith(f"  {id_}: ") and reason in line for line in lines), (reason, lines)
    assert not (tmp_path / "out").exists()
