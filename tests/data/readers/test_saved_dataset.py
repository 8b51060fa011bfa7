"""Folders that `datasets` saved: kinds from its features, files read when asked for, its splits kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.sounds import tone
from zippkit.data.audio import read_audio, write_audio
from zippkit.data.readers import read
from zippkit.data.readers.saved_dataset import SavedFile
from zippkit.data.records import Picture
from zippkit.errors import DataError

pytestmark = pytest.mark.slow

datasets = pytest.importorskip("datasets")


def png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two splits of sound in files and in bytes, text, ids, frames and pictures."""
    write_audio(tmp_path / "a.wav", tone(0.2, 1), 8000)
    write_audio(tmp_path / "b.wav", tone(0.2, 2), 8000)
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "audio": datasets.Audio(decode=False),
            "text": datasets.Value("string"),
            "codes": datasets.Sequence(datasets.Value("int32")),
            "motion": datasets.Array2D((None, 3), "float32"),
            "image": datasets.Image(decode=False),
            "speaker": datasets.Value("int64"),
        }
    )
    frames = np.arange(6, dtype=np.float32).reshape(2, 3).tolist()
    rows: dict[str, list[Any]] = {
        "id": ["one", "two", "three"],
        "audio": [
            {"path": str(tmp_path / "a.wav"), "bytes": None},
            {"path": "b.wav", "bytes": (tmp_path / "b.wav").read_bytes()},
            None,
        ],
        "text": ["first", None, "third"],
        "codes": [[1, 2], [3], []],
        "motion": [frames, frames, frames],
        "image": [{"path": None, "bytes": png()}, None, None],
        "speaker": [7, 8, 9],
    }
    # Given to from_dict, the features would have the sound encoded anew.
    table = datasets.Dataset.from_dict(rows).cast(features)
    folder = tmp_path / "saved"
    datasets.DatasetDict({"train": table, "validation": table.select([0])}).save_to_disk(str(folder))
    table.save_to_disk(str(tmp_path / "single"))
    return folder


COLUMNS = {"speech": "audio", "text": "text", "units": "codes", "motion": "motion", "image": "image"}


def test_kinds_come_from_features(saved: Path) -> None:
    found = list(read("hf", saved, columns=COLUMNS))
    assert [(r.id, r.split, r.speaker, r.text, sorted(r.items)) for r in found] == [
        ("one", "train", "7", "first", ["image", "motion", "speech", "text", "units"]),
        ("two", "train", "8", None, ["motion", "speech", "units"]),
        ("three", "train", "9", "third", ["motion", "text", "units"]),
        ("one", "dev", "7", "first", ["image", "motion", "speech", "text", "units"]),
    ]
    assert all(r.trouble == () for r in found)
    units, motion = found[0].items["units"], found[0].items["motion"]
    assert isinstance(units, np.ndarray) and (units.dtype, units.tolist()) == (np.int64, [1, 2])
    assert isinstance(motion, np.ndarray) and (motion.dtype, motion.shape) == (np.float32, (2, 3))
    picture = found[0].items["image"]
    assert isinstance(picture, Picture) and picture.file.read_bytes() == png()


def test_sound_is_read_from_files_and_bytes(saved: Path) -> None:
    for record, name in zip(read("hf", saved, columns={"speech": "audio"}), ("a.wav", "b.wav"), strict=False):
        (file,) = record.files
        np.testing.assert_array_equal(read_audio(file)[0], read_audio(saved.parent / name)[0])
    # Older versions of the library saved paths alone.
    rows = [{"audio": {"path": str(saved.parent / name), "bytes": None}} for name in ("a.wav", "none.wav")]
    there, gone = (SavedFile(rows, index, "audio", f"train[{index}].audio") for index in range(2))
    np.testing.assert_array_equal(read_audio(there)[0], read_audio(saved.parent / "a.wav")[0])
    with pytest.raises(DataError, match=r"train\[1\]\.audio: no such file: .*none\.wav"):
        read_audio(gone)


def test_columns_left_out_and_splits_drawn(saved: Path) -> None:
    found = list(read("hf", saved.parent / "single", fractions={"some": 1.0}))
    assert {r.split for r in found} == {"some"}
    assert [sorted(r.items) for r in found] == [["image", "speech", "text"], ["speech"], ["text"]]


def test_mistakes(saved: Path) -> None:
    with pytest.raises(DataError, match=r"saved/train: no column 'txt'; did you mean 'text'\?\n.*saved/vali"):
        list(read("hf", saved, columns={"text": "txt"}))
    with pytest.raises(DataError, match=r"columns\.who: what it holds is missing"):
        list(read("hf", saved, columns={"who": "speaker"}))
    with pytest.raises(DataError, match=r"not a dataset that `datasets` saved; looked for dataset_dict\.json"):
        list(read("hf", saved.parent))
    (saved / "train" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="datasets cannot read it"):
        list(read("hf", saved))
