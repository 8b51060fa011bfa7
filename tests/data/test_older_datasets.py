"""Datasets of Parquet files, which zippkit wrote until version 0.2: ``parquet_dataset`` beside this file is one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from zippkit.data import dataset as dataset_module
from zippkit.data.dataset import Dataset
from zippkit.errors import DataError
from zippkit.spec.task import Task
from zippkit.training.task_data import TaskData

LENGTHS = [40, 7, 0, 100, 33, 5, 64]
"""Samples of each recording, in several groups of rows; the third example has none."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(Path(__file__).with_name("parquet_dataset"), tmp_path / "old")
    return tmp_path / "old"


def wave(index: int) -> np.ndarray:
    samples = np.random.default_rng(index).integers(-(2**15), 2**15, LENGTHS[index])
    return (samples / 32_768).astype(np.float32)


def test_everything_is_read(folder: Path) -> None:
    dataset = Dataset.open(folder)
    dataset.verify()
    split = dataset.split("train")
    assert (dataset.manifest.format_version, len(split)) == (1, 7)
    for index in (6, 0, 3, 2, 5, 1, 4):
        example = split[index]
        assert (example.id, example.speaker, example.seconds) == (f"a{index}", "s", 0.5 * index)
        assert example.items["text"] == " ".join(["one", "two", "three"][: 1 + index % 3])
        assert np.asarray(example.items["image"]).tolist() == list(range(index))
        assert ("speech" in example.items) == (index != 2)
        if index != 2:
            np.testing.assert_array_equal(np.asarray(example.items["speech"]), wave(index))
    assert split.lengths("speech").tolist() == [0 if i == 2 else n for i, n in enumerate(LENGTHS)]
    assert split.having(["speech"]).tolist() == [0, 1, 3, 4, 5, 6]
    assert split.names() == [f"a{i}" for i in range(7)]


def test_text_is_encoded_once(folder: Path) -> None:
    dataset = Dataset.open(folder)
    split = dataset.split("train")
    encode = dataset.text_tokenizer("text").encode
    assert split.token_lengths("text").tolist() == [1 + i % 3 for i in range(7)]
    assert [split.tokens(i, "text").tolist() for i in range(7)] == [
        encode(str(split.item(i, "text"))) for i in range(7)
    ]
    data = TaskData(Task(("image",), "text"), dataset, split)
    assert data.segments(5)[1].tokens.tolist() == encode("one two three")


def damaged(folder: Path, place: int) -> Path:
    file = folder / "train.parquet"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    return file


def test_what_is_damaged_is_never_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as small:
        small.setattr(dataset_module, "_HASH_AT_OPEN", 0)
        for place in range(4, (folder / "train.parquet").stat().st_size, 41):
            damaged(folder, place)
            with pytest.raises(DataError, match=r"train\.parquet: "):
                list(Dataset.open(folder).split("train"))
            damaged(folder, place)
        list(Dataset.open(folder).split("train"))


def test_the_oldest_have_no_checksums(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["train.parquet"]["checksums"], manifest["files"]["train.crc32"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "train.crc32").unlink()
    split = Dataset.open(folder).split("train")
    assert len(list(split)) == 7
    content = bytearray(split.path.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    split.path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.parquet: not a readable Parquet file"):
        split.item(0, "speech")
