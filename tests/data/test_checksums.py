"""A large dataset is not hashed when it is opened; whatever is read of it is what was written all the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zippkit.data import dataset as dataset_module
from zippkit.data import rows
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.errors import DataError

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Text, ids and waveforms in several groups of rows, taken for a large dataset."""
    monkeypatch.setattr(dataset_module, "_HASH_AT_OPEN", 0)
    monkeypatch.setattr(rows, "_SAMPLES_AT_ONCE", 200)
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
    file = folder / "train.parquet"
    whole = file.read_bytes()
    # The first four bytes say "PAR1" and nobody needs them.
    for place in range(4, len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        file.write_bytes(broken)
        with pytest.raises(DataError, match=r"train.parquet: "):
            _everything(folder)


def test_what_is_damaged_is_named(folder: Path) -> None:
    file = folder / "train.parquet"
    broken = bytearray(file.read_bytes())
    broken[-20] ^= 1
    file.write_bytes(broken)
    with pytest.raises(DataError, match=r"the footer: not what was written \(its CRC-32 is not that in train.crc32\)"):
        _everything(folder)


def test_only_what_is_read_is_compared(folder: Path) -> None:
    import pyarrow.parquet

    file = folder / "train.parquet"
    metadata = pyarrow.parquet.read_metadata(file)
    names = [metadata.schema.column(i).path.partition(".")[0] for i in range(metadata.num_columns)]
    assert metadata.num_row_groups == 3
    chunk = metadata.row_group(1).column(names.index("speech"))
    broken = bytearray(file.read_bytes())
    broken[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    file.write_bytes(broken)
    split = Dataset.open(folder).split("train")
    assert split.item(0, "text") == "word 0"
    assert len(split.item(0, "speech")) == 90
    with pytest.raises(DataError, match="row group 1, column speech: not what was written"):
        split.item(4, "speech")


def test_checksums_are_hashed_themselves(folder: Path) -> None:
    content = bytearray((folder / "train.crc32").read_bytes())
    content[9] ^= 1
    (folder / "train.crc32").write_bytes(content)
    with pytest.raises(DataError, match=r"train.crc32 is not what was written"):
        Dataset.open(folder)


def test_older_datasets_are_read_without(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["train.parquet"]["checksums"], manifest["files"]["train.crc32"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "train.crc32").unlink()
    assert len(_everything(folder)) == 27
