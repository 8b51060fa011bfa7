"""A large dataset is not hashed when it is opened; whatever is read of it is what was written all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zippkit.data import block_checksums, rows
from zippkit.data import dataset as dataset_module
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.table import Split
from zippkit.errors import DataError

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Text, ids and waveforms in several groups of rows, taken for a large dataset."""
    monkeypatch.setattr(dataset_module, "_HASH_AT_OPEN", 0)
    monkeypatch.setattr(rows, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(block_checksums, "BLOCK", 128)
    numbers = np.random.default_rng(0)
    examples = [
        Example(
            f"a{i}",
            "s",
            0.1,
            {
                "text": f"word {i}",
                "units": numbers.integers(0, 500, 20),
                "speech": numbers.uniform(-1, 1, 90).astype(np.float32),
            },
        )
        for i in range(9)
    ]
    return write_dataset(tmp_path / "data", {"train": examples}, {}, waveforms={"speech": 8000}).path


def _everything(folder: Path) -> list[object]:
    split = Dataset.open(folder).split("train")
    return [split.item(i, name) for i in range(len(split)) for name in split.modalities]


def test_whole_data_are_read(folder: Path) -> None:
    assert len(_everything(folder)) == 27


def test_a_flipped_bit_is_never_read(folder: Path) -> None:
    whole_data = _everything(folder)
    file = folder / "train.arrow"
    whole = file.read_bytes()
    missed = 0
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        file.write_bytes(broken)
        try:
            read = _everything(folder)
        except DataError as error:
            assert "train.arrow: bytes from " in str(error)
        else:
            # A byte that nobody needs: padding, or a column that is not asked for.
            assert all(np.array_equal(a, b) for a, b in zip(read, whole_data, strict=True))
            missed += 1
    assert missed < len(whole) / 4


def test_what_is_damaged_is_named(folder: Path) -> None:
    file = folder / "train.arrow"
    broken = bytearray(file.read_bytes())
    broken[-20] ^= 1
    file.write_bytes(broken)
    with pytest.raises(
        DataError, match=r"bytes from \d+: not what was written \(their CRC-32 is not that in train.crc32"
    ):
        _everything(folder)


def test_only_what_is_read_is_compared(folder: Path) -> None:
    file = folder / "train.arrow"
    content = bytearray(file.read_bytes())
    wave = np.asarray(Dataset.open(folder).split("train").item(4, "speech"))
    place = content.index(np.round(wave * 32_768).astype("<i2").tobytes())
    content[place + 90] ^= 1
    file.write_bytes(content)
    split = Dataset.open(folder).split("train")
    assert split.item(0, "text") == "word 0" and len(split.names()) == 9
    assert len(split.item(0, "speech")) == 90
    with pytest.raises(DataError, match="bytes from"):
        split.item(4, "speech")


def test_checksums_are_hashed_themselves(folder: Path) -> None:
    content = bytearray((folder / "train.crc32").read_bytes())
    content[9] ^= 1
    (folder / "train.crc32").write_bytes(content)
    with pytest.raises(DataError, match=r"train.crc32 is not what was written"):
        Dataset.open(folder)


def test_checksums_of_another_file_are_refused(folder: Path) -> None:
    file = folder / "train.crc32"
    file.write_bytes(file.read_bytes()[:-4])
    split = Split(folder / "train.arrow", ("text", "units", "speech"), 9, file)
    with pytest.raises(DataError, match="bytes of checksums, which are not those of train"):
        split.item(0, "text")
