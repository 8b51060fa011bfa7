"""Corpora to datasets: trained on training data only, complete or not at all, and every bad recording named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.sounds import SMALL, tone
from zippkit.data.audio import read_audio, write_audio
from zippkit.data.dataset import Dataset
from zippkit.data.prepare import prepare
from zippkit.data.readers import read
from zippkit.data.records import Record, spoken
from zippkit.data.text import FileTokenizer
from zippkit.data.units import UnitConfig, UnitTokenizer
from zippkit.errors import DataError

DEMO = Path(__file__).parents[2] / "recipes" / "demo"


def spoil(root: Path) -> dict[str, str]:
    """Break four recordings of the small corpus in four ways; id to the reason that must be given."""
    train = root / "train-clean-100" / "10" / "7"
    content = (train / "10-7-tr0001.flac").read_bytes()
    (train / "10-7-tr0001.flac").write_bytes(content[: len(content) // 2])
    write_audio(train / "10-7-tr0002.flac", np.zeros(0, np.float32), 8000)
    write_audio(train / "10-7-tr0003.flac", tone(0.5, 1, rate=16_000), 16_000)
    transcripts = root / "dev-clean" / "20" / "7" / "20-7.trans.txt"
    transcripts.write_text(transcripts.read_text().splitlines()[1])
    return {
        "10-7-tr0001": "not a readable sound file",
        "10-7-tr0002": "empty file",
        "10-7-tr0003": "16000 Hz, expected 8000; resample=True",
        "20-7-de0000": "no transcript",
    }


def test_a_corpus_becomes_a_dataset(librispeech_root: Path, tmp_path: Path) -> None:
    written = prepare("librispeech", librispeech_root, tmp_path / "out", units=SMALL, text="words")
    dataset = Dataset.open(written.path)
    units, text = dataset.tokenizer("speech"), dataset.tokenizer("text")
    assert isinstance(units, UnitTokenizer) and isinstance(text, FileTokenizer)
    for recording in read("librispeech", librispeech_root):
        stored = next(e for e in dataset.split(recording.split) if e.id == recording.id)
        wave, rate = read_audio(recording.files[0])
        assert (stored.speaker, stored.seconds) == (recording.speaker, 0.5)
        assert stored.items["text"] == recording.text == text.decode(text.encode(str(recording.text)))
        np.testing.assert_array_equal(stored.items["speech"], units.encode(wave, rate))
    assert dataset.manifest.source["kind"] == "librispeech" and dataset.manifest.source["root"] == "LibriSpeech"
    assert dataset.manifest.skipped == []


def test_units_and_words_are_learnt_from_the_training_split_alone(librispeech_root: Path, tmp_path: Path) -> None:
    before = prepare("librispeech", librispeech_root, tmp_path / "a", units=SMALL, text="words")
    chapter = librispeech_root / "test-other" / "20" / "7"
    for path in chapter.glob("*.flac"):
        write_audio(path, tone(0.7, seed=1), 8000)
    (chapter / "20-7.trans.txt").write_text("20-7-te0000 unheard of\n20-7-te0001 words\n")
    after = prepare("librispeech", librispeech_root, tmp_path / "b", units=SMALL, text="words")
    assert after.fingerprints == before.fingerprints
    write_audio(librispeech_root / "train-clean-100" / "10" / "7" / "10-7-tr0000.flac", tone(0.7, seed=1), 8000)
    changed = prepare("librispeech", librispeech_root, tmp_path / "c", units=SMALL, text="words")
    assert changed.fingerprints["speech"] != before.fingerprints["speech"]


def test_the_same_call_writes_the_same_bytes(librispeech_root: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        prepare("librispeech", librispeech_root, tmp_path / name, units=SMALL, limit=3, seed=1)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 9
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_every_bad_recording_is_named_and_nothing_written(librispeech_root: Path, tmp_path: Path) -> None:
    reasons = spoil(librispeech_root)
    out = tmp_path / "here" / "out"
    with pytest.raises(DataError) as caught:
        prepare("librispeech", librispeech_root, out, units=SMALL)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{librispeech_root}: 4 of 12 recordings cannot be used; skip_bad=True (--skip-bad)")
    assert len(lines) == 5
    for id_, reason in reasons.items():
        assert any(line.startswith(f"  {id_}: ") and reason in line for line in lines), str(lines)
    assert not out.parent.exists()


def test_bad_recordings_are_skipped_when_told_and_recorded(librispeech_root: Path, tmp_path: Path) -> None:
    reasons = spoil(librispeech_root)
    dataset = prepare("librispeech", librispeech_root, tmp_path / "out", units=SMALL, skip_bad=True)
    assert {name: len(dataset.split(name)) for name in dataset.splits} == {"train": 5, "dev-clean": 1, "test-other": 2}
    skipped = {s.id: s.reason for s in Dataset.open(tmp_path / "out").manifest.skipped}
    assert skipped.keys() == reasons.keys()
    assert all(reason in skipped[id_] and str(tmp_path) not in skipped[id_] for id_, reason in reasons.items())


def test_a_trained_tokenizer_is_used_as_it_is(librispeech_root: Path, tmp_path: Path, units: UnitTokenizer) -> None:
    units.save(tmp_path / "units.safetensors")
    for given in (units, tmp_path / "units.safetensors"):
        dataset = prepare("librispeech", librispeech_root, tmp_path / "out", units=given, overwrite=True)
        assert dataset.fingerprints["speech"] == units.fingerprint
    spoil(librispeech_root)
    with pytest.raises(DataError, match="4 of 12"):
        prepare("librispeech", librispeech_root, tmp_path / "out", units=units, overwrite=True)
    Dataset.open(tmp_path / "out").verify()


def test_a_dataset_lends_its_tokenizers(librispeech_root: Path, tmp_path: Path) -> None:
    first = prepare("librispeech", librispeech_root, tmp_path / "first", units=SMALL, text="words")
    second = prepare("librispeech", librispeech_root, tmp_path / "second", units=first.path, text=first.path)
    assert second.fingerprints == first.fingerprints
    sound = prepare("librispeech", librispeech_root, tmp_path / "sound", waveform=8000, text="bytes", resample=True)
    with pytest.raises(DataError, match=r"sound: speech has no tokenizer \(waveform\); expected another dataset, or a"):
        prepare("librispeech", librispeech_root, tmp_path / "third", units=sound.path)
    again = prepare("librispeech", librispeech_root, tmp_path / "third", units=first.path, text=sound.path)
    assert again.fingerprints["text"] == sound.fingerprints["text"]


def test_sample_rates_are_converted_when_told(librispeech_root: Path, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"sample_rate": 16_000, "n_fft": 512})
    with pytest.raises(DataError, match="12 of 12 recordings"):
        prepare("librispeech", librispeech_root, tmp_path / "out", units=config)
    dataset = prepare("librispeech", librispeech_root, tmp_path / "out", units=config, resample=True)
    assert dataset.split("test-other")[0].seconds == 0.5


def test_a_string_is_its_files_one_after_the_other(tmp_path: Path, units: UnitTokenizer) -> None:
    pieces = [tone(0.3, 1), tone(0.4, 2)]
    for index, piece in enumerate(pieces):
        write_audio(tmp_path / f"{index}.wav", piece, 8000)

    def two_files(root: Path) -> Iterator[Record]:
        yield spoken("a", "train", (root / "0.wav", root / "1.wav"), "zero one", "s")

    example = prepare(two_files, tmp_path, tmp_path / "out", units=units).split("train")[0]
    joined = np.concatenate([read_audio(tmp_path / f"{index}.wav")[0] for index in range(2)])
    np.testing.assert_array_equal(example.items["speech"], units.encode(joined, 8000))
    assert example.seconds == pytest.approx(0.7)


def test_other_recordings_that_cannot_be_used(tmp_path: Path, units: UnitTokenizer) -> None:
    write_audio(tmp_path / "0.wav", tone(0.3, 1), 8000)
    write_audio(tmp_path / "1.wav", tone(0.3, 1, rate=16_000), 16_000)
    both = (tmp_path / "0.wav", tmp_path / "1.wav")

    def bad(root: Path) -> Iterator[Record]:
        yield spoken("mixed", "train", both, "zero", "s")
        yield spoken("twice", "train", both[:1], "zero", "s")
        yield spoken("twice", "test", both[:1], "zero", "s")
        yield spoken("blank", "train", both[:1], "  ", "s")
        yield from (spoken(f"gone{i}", "train", (root / "none.wav",), "zero", "s") for i in range(30))

    with pytest.raises(DataError) as caught:
        prepare(bad, tmp_path, tmp_path / "out", units=units)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: 33 of 34") and message.endswith("  and 13 more")
    assert "mixed: " in message and "twice: another recording has the same id" in message
    assert "blank: empty transcript" in message and "gone0: " in message and "no such file" in message


def test_a_limit_is_per_split(librispeech_root: Path, tmp_path: Path, units: UnitTokenizer) -> None:
    drawn = []
    for seed in range(3):
        dataset = prepare("librispeech", librispeech_root, tmp_path / f"{seed}", units=units, limit=3, seed=seed)
        assert {name: len(dataset.split(name)) for name in dataset.splits} == {
            "train": 3,
            "dev-clean": 2,
            "test-other": 2,
        }
        drawn.append(tuple(e.id for e in dataset.split("train")))
    assert len(set(drawn)) > 1


def test_mistakes_in_the_call(librispeech_root: Path, tmp_path: Path, units: UnitTokenizer) -> None:
    with pytest.raises(DataError, match="reader fsdd: max_digit: unknown key 'max_digit'; did you mean 'max_digits'"):
        prepare("fsdd", librispeech_root, tmp_path / "out", options={"max_digit": 3})
    with pytest.raises(DataError, match="no records of the kind fsdd"):
        prepare("fsdd", librispeech_root, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        prepare("librispeech", librispeech_root, tmp_path / "out", units=units)


def test_progress_reaches_each_total(librispeech_root: Path, tmp_path: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    prepare(
        "librispeech",
        librispeech_root,
        tmp_path / "out",
        units=SMALL,
        progress=lambda done, total, what: told.setdefault(what, []).append((done, total)),
    )
    assert list(told) == ["reading", "clustering", "encoding"]
    assert all(steps[-1][0] == steps[-1][1] for steps in told.values())
    assert told["reading"] == [(i, 12) for i in range(1, 13)] == told["encoding"]


@pytest.mark.data
def test_real_digit_strings(fsdd_root: Path, tmp_path: Path) -> None:
    dataset = prepare(
        "fsdd",
        fsdd_root,
        tmp_path / "out",
        units=UnitConfig(sample_rate=8000, n_fft=256, n_mels=40, window=2, stride=2, n_units=32),
        options={"max_digits": 4, "counts": {"train": 20, "dev": 3, "test": 5}},
        text="words",
    )
    assert {name: len(dataset.split(name)) for name in dataset.splits} == {"train": 20, "dev": 3, "test": 5}
    lengths, seconds = dataset.split("train").lengths("speech"), [e.seconds for e in dataset.split("train")]
    np.testing.assert_allclose(lengths, 50 * np.array(seconds), atol=1)


@pytest.mark.data
def test_real_prompts(kathleen: Path, tmp_path: Path, stories260k: Path) -> None:
    config = UnitConfig(n_units=64)
    dataset = prepare("pairs", kathleen, tmp_path / "out", units=config, limit=4, text=stories260k)
    text = dataset.tokenizer("text")
    assert isinstance(text, FileTokenizer)
    assert dataset.manifest.modalities["text"].vocab_size == 512
    for example in dataset.split("test"):
        assert example.speaker == "kathleen"
        assert text.decode(text.encode(str(example.items["text"]))) == example.items["text"]


def test_the_embedded_dataset() -> None:
    dataset = Dataset.open(DEMO / "data")
    dataset.verify()
    assert {name: len(dataset.split(name)) for name in dataset.splits} == {"train": 1000, "dev": 100, "test": 200}
    said = [example.items["text"] for name in dataset.splits for example in dataset.split(name)]
    assert len(set(said)) == 1300
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 3_000_000


def test_the_embedded_audio_is_of_test_strings_and_encodes_to_their_units() -> None:
    dataset = Dataset.open(DEMO / "data")
    units = dataset.tokenizer("speech")
    assert isinstance(units, UnitTokenizer)
    by_text = {str(example.items["text"]): example for example in dataset.split("test")}
    files = sorted((DEMO / "audio").glob("*.wav"))
    assert len(files) == 3
    for file in files:
        example = by_text[file.stem.replace("_", " ")]
        np.testing.assert_array_equal(units.encode(*read_audio(file)), example.items["speech"])


def test_preparing_needs_no_torch() -> None:
    code = "import sys, zippkit.data.prepare; assert 'torch' not in sys.modules and 'librosa' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
