"""Waveforms in dataset folders: nothing of a 16-bit recording is lost, and none is read that nobody asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.sounds import SMALL, tone
from zippkit.cli.prepare_dataset import run_prepare
from zippkit.data import block_checksums, rows
from zippkit.data.audio import read_audio, resample
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.prepare import prepare
from zippkit.data.readers import read
from zippkit.data.tables import MappedTable
from zippkit.data.text import ByteTokenizer
from zippkit.errors import DataError, ZippkitError

RATE = 8000


def recorded(n_samples: int, seed: int) -> np.ndarray:
    """As a 16-bit recording is read."""
    samples = np.random.default_rng(seed).integers(-(2**15), 2**15, n_samples)
    return (samples / 32_768).astype(np.float32)


LENGTHS = [40, 7, 0, 100, 33, 5, 64]
SPOKEN = [Example(f"a{i}", "s", 0.1, {"text": f"w {i}", "speech": recorded(n, i)}) for i, n in enumerate(LENGTHS)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven recordings in several groups of rows."""
    monkeypatch.setattr(rows, "_BYTES_AT_ONCE", 4 * 48)
    monkeypatch.setattr(block_checksums, "BLOCK", 64)
    return write_dataset(tmp_path / "data", {"train": SPOKEN}, {}, waveforms={"speech": RATE}).path


@pytest.fixture
def samples_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples of each waveform are read from the file."""
    check, seen = MappedTable.check, []

    def watched(self: MappedTable, values: np.ndarray) -> np.ndarray:
        seen.extend([len(values)] if values.dtype == np.int16 else [])
        return check(self, values)

    monkeypatch.setattr(MappedTable, "check", watched)
    return seen


def test_a_16_bit_recording_comes_back_to_the_last_bit(folder: Path) -> None:
    dataset = Dataset.open(folder)
    split = dataset.split("train")
    for index in (6, 0, 3, 2, 5, 1, 4):
        wave = np.asarray(split[index].items["speech"])
        assert wave.dtype == np.float32
        np.testing.assert_array_equal(wave, SPOKEN[index].items["speech"])
        assert split[index].items["text"] == f"w {index}"
    entry = dataset.manifest.modalities["speech"]
    assert (entry.kind, entry.sample_rate, entry.vocab_size, entry.is_text) == ("waveform", RATE, None, False)
    assert dataset.fingerprints["speech"] is None
    dataset.verify()


def test_what_has_no_16_bits_is_rounded_and_clipped(tmp_path: Path) -> None:
    wave = np.array([1.0, -1.0, 1.3, 0.1, -0.3], np.float64)
    written = [Example("a", "", 0.0, {"speech": wave})]
    split = write_dataset(tmp_path / "data", {"train": written}, {}, waveforms={"speech": RATE}).split("train")
    np.testing.assert_allclose(np.asarray(split[0].items["speech"]), np.clip(wave, -1, 1), atol=2**-15)


def test_only_what_is_asked_for_is_read(folder: Path, samples_read: list[int]) -> None:
    split = Dataset.open(folder).split("train")
    assert split.lengths("speech").tolist() == LENGTHS
    assert split.having(["speech", "text"]).tolist() == list(range(7))
    assert split.names() == [example.id for example in SPOKEN]
    assert split.item(3, "text") == "w 3"
    assert samples_read == []
    np.testing.assert_array_equal(split.item(4, "speech"), SPOKEN[4].items["speech"])
    np.testing.assert_array_equal(split.item(5, "speech"), SPOKEN[5].items["speech"])
    assert samples_read == [33, 5]
    assert len(list(split)) == 7 and samples_read == [33, 5, *LENGTHS]


def test_recordings_beside_what_has_no_sound(tmp_path: Path) -> None:
    mixed = [
        Example("a", "", 0.0, {"image": np.zeros(4, int), "text": "x"}),
        Example("b", "", 0.0, {"speech": recorded(9, 0), "text": "y"}),
    ]
    tokenizers = {"text": ByteTokenizer(), "image": PixelTokenizer(2, 3)}
    write_dataset(tmp_path / "data", {"train": mixed}, tokenizers, waveforms={"speech": RATE}, partial=True)
    split = Dataset.open(tmp_path / "data").split("train")
    assert [set(example.items) for example in split] == [{"image", "text"}, {"speech", "text"}]
    assert split.lengths("speech").tolist() == [0, 9] and split.having(["speech"]).tolist() == [1]
    np.testing.assert_array_equal(split.item(1, "speech"), mixed[1].items["speech"])
    with pytest.raises(DataError, match="example 'a' has no speech"):
        split.item(0, "speech")
    with pytest.raises(DataError, match="no modality 'speach'; did you mean 'speech'"):
        split.item(0, "speach")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"speech": np.array([3, 4])}, r"speech is int64\(2,\), expected floats of one channel"),
        ({"speech": np.zeros((2, 5))}, r"speech is float64\(2, 5\), expected floats of one channel"),
        ({"speech": np.array([0.1, -300.0])}, "samples up to 300, expected -1 to 1 .divide 16-bit samples by 32768"),
        ({"speech": np.array([0.1, np.nan])}, "samples up to nan"),
        ({"speech": "words"}, "speech as text, expected speech as waveform"),
        ({"speech": np.zeros(3), "speech_ids": "x"}, "modalities .*, expected some, and none of .*speech_ids"),
        ({"text": "x"}, "sample rate for 'speech', which no example has"),
    ],
)
def test_what_is_no_waveform_is_refused(tmp_path: Path, items: dict[str, object], message: str) -> None:
    good = {} if "speech_ids" in items or "text" in items else {"speech": np.zeros(2)}
    written = [Example("a", "", 0.0, good)] * bool(good) + [Example("b", "", 0.0, items)]  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "data", {"train": written}, {}, waveforms={"speech": RATE})
    assert list(tmp_path.iterdir()) == []


def test_a_waveform_has_no_tokenizer(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="speech holds waveforms, which have no tokenizer"):
        Dataset.open(folder).tokenizer("speech")
    with pytest.raises(DataError, match="speech has a tokenizer and a sample rate; expected one of them"):
        write_dataset(tmp_path / "b", {"train": SPOKEN}, {"speech": ByteTokenizer()}, waveforms={"speech": RATE})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate": None}, "waveform: sample_rate is missing"),
        ({"vocab_size": 5}, "waveform: vocab_size is not for it"),
        ({"kind": "ids"}, "ids: vocab_size is missing"),
    ],
)
def test_a_manifest_that_mixes_ids_and_samples(folder: Path, change: dict[str, object], message: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["modalities"]["speech"] |= change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message):
        Dataset.open(folder)


def test_a_damaged_group_is_one_clear_error(folder: Path) -> None:
    split = Dataset.open(folder).split("train")
    assert split.item(0, "text") == "w 0"
    content = bytearray(split.path.read_bytes())
    place = content.index(np.round(np.asarray(SPOKEN[3].items["speech"]) * 32_768).astype("<i2").tobytes())
    content[place + 100] ^= 1
    split.path.write_bytes(content)
    np.testing.assert_array_equal(split.item(4, "speech"), SPOKEN[4].items["speech"])
    with pytest.raises(DataError, match=r"train\.arrow: bytes from \d+: not what was written"):
        split.item(3, "speech")


def test_hugging_face_opens_waveforms_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    np.testing.assert_array_equal(np.array(loaded[1]["speech"]) / 32_768, SPOKEN[1].items["speech"])


def test_a_corpus_becomes_waveforms(librispeech_root: Path, tmp_path: Path) -> None:
    told: list[str] = []
    prepare(
        "librispeech", librispeech_root, tmp_path / "out", waveform=8000, text="words",
        progress=lambda done, total, what: told.append(what),
    )  # fmt: skip
    dataset = Dataset.open(tmp_path / "out")
    assert dict.fromkeys(told) == dict.fromkeys(["reading", "encoding"]), "no units are trained"
    assert dataset.manifest.modalities["speech"].sample_rate == 8000
    for recording in read("librispeech", librispeech_root):
        stored = next(example for example in dataset.split(recording.split) if example.id == recording.id)
        np.testing.assert_array_equal(stored.items["speech"], read_audio(recording.files[0])[0])
        assert (stored.items["text"], stored.seconds) == (recording.text, 0.5)


def test_waveforms_are_resampled_when_told(librispeech_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="12 of 12 recordings") as caught:
        prepare("librispeech", librispeech_root, tmp_path / "out", waveform=16_000)
    assert "8000 Hz, expected 16000; resample=True (--resample) converts" in str(caught.value)
    split = prepare("librispeech", librispeech_root, tmp_path / "out", waveform=16_000, resample=True).split(
        "test-other"
    )
    wave = resample(*read_audio(next(librispeech_root.glob("test-other/*/*/*0000.flac"))), 16_000)
    np.testing.assert_allclose(np.asarray(split[0].items["speech"]), wave, atol=2**-15)
    assert split[0].seconds == 0.5


def test_waveforms_or_units_but_not_both(librispeech_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a sample rate in Hz, or units, not both"):
        prepare("librispeech", librispeech_root, tmp_path / "out", waveform=8000, units=SMALL)
    with pytest.raises(DataError, match="waveform=0"):
        prepare("librispeech", librispeech_root, tmp_path / "out", waveform=0)
    flags = {"text": "words", "resample": False, "skip_bad": False, "limit": 3, "seed": 0, "overwrite": False}
    arguments = ("librispeech", librispeech_root, tmp_path / "out")
    with pytest.raises(ZippkitError, match=r"writes sound as it is, and no units; remove --units, units\.stride"):
        run_prepare(*arguments, ["units.stride=2"], Path("u.safetensors"), flags | {"waveform": 8000})
    assert run_prepare(*arguments, [], None, flags | {"waveform": 8000}).endswith("3 train, 2 dev-clean, 2 test-other")
    with pytest.raises(ZippkitError, match="holds no sound, only text, image; remove --waveform"):
        run_prepare("handwritten", None, tmp_path / "b", [], None, flags | {"waveform": 8000})


def test_any_order_of_groups_gives_the_same_waveforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_BYTES_AT_ONCE", 2**16)
    waves = [tone(0.3 + 0.1 * (i % 5), i) for i in range(60)]
    written = [Example(str(i), "", 0.0, {"speech": wave}) for i, wave in enumerate(waves)]
    split = write_dataset(tmp_path / "data", {"train": written}, {}, waveforms={"speech": RATE}).split("train")
    for index in np.random.default_rng(0).permutation(60).tolist():
        np.testing.assert_allclose(np.asarray(split.item(index, "speech")), waves[index], atol=2**-15)
