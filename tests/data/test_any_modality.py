"""Records of any modality, and documents, on their way to a dataset: what comes out is what went in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.sounds import SMALL, tone
from zippkit.cli.prepare_dataset import run_prepare
from zippkit.data.audio import read_audio, write_audio
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.frame_units import FrameUnitConfig, FrameUnits
from zippkit.data.prepare import prepare
from zippkit.data.records import Record, Sound, Source
from zippkit.data.text import ByteTokenizer, train_words
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError

WORDS = ("walk", "run", "rest")


def motion(index: int, n: int = 20) -> np.ndarray:
    """(n, 6) readings, of another size and scale in each channel."""
    numbers = np.random.default_rng(index)
    return (numbers.normal(index % 3, 0.2, (n, 6)) * np.array([1, 10, 100, 1, 1, 0])).astype(np.float32)


def moving(root: Path) -> Iterator[Record]:
    """Motion with a word, ids and a translation of the word."""
    for i in range(24):
        split = "train" if i < 18 else "test"
        items: dict[str, Source] = {
            "imu": motion(i, 5 + i % 7),
            "text": WORDS[i % 3],
            "german": WORDS[i % 3].upper(),
            "place": np.array([70_000 + i, i]),
        }
        yield Record(f"m{i:02d}", split, items, f"s{i % 2}")


def test_each_modality_has_its_own_tokenizer_or_none(tmp_path: Path) -> None:
    choices: dict[str, Any] = {
        "german": "words",
        "imu": {"kind": "frame_units", "n_units": 8, "window": 2, "stride": 2},
    }
    dataset = Dataset.open(prepare(moving, tmp_path, tmp_path / "out", text="bytes", tokenizers=choices).path)
    kinds = {name: column.kind for name, column in dataset.manifest.modalities.items()}
    assert kinds == {"imu": "codes", "text": "bytes", "german": "tokenizer_json", "place": "ids"}
    imu = dataset.tokenizer("imu")
    assert isinstance(imu, FrameUnits) and imu.vocab_size == 10 == dataset.manifest.modalities["imu"].vocab_size
    assert dataset.manifest.modalities["place"].vocab_size == 70_024
    for record in moving(tmp_path):
        example = next(e for e in dataset.split(record.split) if e.id == record.id)
        np.testing.assert_array_equal(example.items["imu"], imu.encode(np.asarray(record.items["imu"])))
        np.testing.assert_array_equal(example.items["place"], record.items["place"])
        assert (example.items["text"], example.items["german"]) == (record.items["text"], record.items["german"])
    split = dataset.split("train")
    assert split.token_lengths("german").tolist() == [1] * 18
    assert split.tokens(1, "text").tolist() == list(b"run") and split.lengths("text")[1] == 3


def test_frames_are_stored_as_they_are(tmp_path: Path) -> None:
    dataset = prepare(moving, tmp_path, tmp_path / "out")
    column = dataset.manifest.modalities["imu"]
    every = np.concatenate([motion(i, 5 + i % 7) for i in range(24)])
    assert (column.kind, column.shape, column.vocab_size) == ("features", [6], None)
    assert (column.least, column.most) == (float(every.min()), float(every.max()))
    split = Dataset.open(dataset.path).split("train")
    for i in range(18):
        stored = np.asarray(split.item(i, "imu"))
        np.testing.assert_array_equal(stored, motion(i, 5 + i % 7))
        assert stored.dtype == np.float32 and stored.flags.writeable
    assert split.lengths("imu").tolist() == [5 + i % 7 for i in range(18)]
    with pytest.raises(DataError, match="imu holds features, which have no tokenizer"):
        dataset.tokenizer("imu")


def test_tokenizers_learn_from_the_training_split_alone(tmp_path: Path) -> None:
    def other_tests(root: Path) -> Iterator[Record]:
        for record in moving(root):
            changed = {"imu": motion(99, 9), "german": "UNHEARD"} if record.split == "test" else {}
            yield Record(record.id, record.split, {**record.items, **changed})

    choices: dict[str, Any] = {"german": "words", "imu": FrameUnitConfig(n_units=8)}
    made = [prepare(read, tmp_path, tmp_path / read.__name__, tokenizers=choices) for read in (moving, other_tests)]
    assert made[0].fingerprints == made[1].fingerprints
    files = sorted(p.name for p in made[0].path.rglob("*") if p.is_file())
    again = prepare(moving, tmp_path, tmp_path / "again", tokenizers=choices)
    assert all(
        (again.path / p.relative_to(made[0].path)).read_bytes() == p.read_bytes()
        for p in made[0].path.rglob("*")
        if p.is_file()
    ), files


def test_a_trained_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    trained = FrameUnits.train([motion(i) for i in range(9)], FrameUnitConfig(n_units=4))
    dataset = prepare(moving, tmp_path, tmp_path / "out", tokenizers={"imu": trained})
    assert dataset.fingerprints["imu"] == trained.fingerprint

    def narrow(root: Path) -> Iterator[Record]:
        yield Record("a", "train", {"imu": np.zeros((3, 5), np.float32)})

    with pytest.raises(DataError, match=r"a: imu: an array of shape \(3, 5\), expected \('N', 6\)"):
        prepare(narrow, tmp_path, tmp_path / "b", tokenizers={"imu": trained})


def test_all_that_is_wrong_is_told_at_once_and_nothing_written(tmp_path: Path) -> None:
    write_audio(tmp_path / "8.wav", tone(0.3, 1), 8000)
    write_audio(tmp_path / "16.wav", tone(0.3, 1, rate=16_000), 16_000)

    def bad(root: Path) -> Iterator[Record]:
        sound = Sound((root / "8.wav",))
        good = {"imu": motion(1), "place": np.array([1]), "speech": sound}
        yield Record("good", "train", good)
        yield Record("more", "train", good)
        yield Record("wide", "train", good | {"imu": np.zeros((4, 7), np.float32)})
        yield Record("nan", "train", good | {"imu": np.full((4, 6), np.nan, np.float32)})
        yield Record("none", "train", good | {"imu": np.zeros((0, 6), np.float32), "place": np.array([2**31])})
        yield Record("minus", "train", good | {"place": np.array([-3])})
        yield Record("rate", "test", good | {"speech": Sound((root / "16.wav",))})
        yield Record("lacks", "test", {"imu": motion(2), "speech": sound})

    with pytest.raises(DataError) as caught:
        prepare(bad, tmp_path, tmp_path / "out", units=SMALL)
    told = str(caught.value)
    for expected in (
        "6 of 8 recordings cannot be used",
        "wide: imu has frames of shape (7,), expected (6,)",
        "nan: imu has nan at [0, 0], expected finite numbers",
        "none: imu: no frames; place: id 2147483648 at index 0, expected at most 2147483647",
        "minus: place has id -3",
        "rate: 16.wav: 16000 Hz, expected 8000",
        "lacks: no place; partial=True (--partial) keeps such records",
    ):
        assert expected in told, told
    assert not (tmp_path / "out").exists()


def test_choices_that_do_not_fit_are_told_at_once(tmp_path: Path) -> None:
    choices: dict[str, Any] = {
        "imu": "codec",
        "place": "frame_units",
        "text": {"kind": "none-such.json"},
        "gps": "none",
    }
    with pytest.raises(DataError) as caught:
        prepare(moving, tmp_path, tmp_path / "out", tokenizers=choices, vocoder=True)
    told = str(caught.value).splitlines()
    assert len(told) == 5
    for line, expected in zip(
        told, ("'gps'", "no sound", "imu, frames", "none-such.json", "place holds ids"), strict=True
    ):
        assert expected in line


def test_modalities_may_be_lacking_when_told(tmp_path: Path) -> None:
    def some(root: Path) -> Iterator[Record]:
        for i, record in enumerate(moving(root)):
            yield Record(
                record.id, record.split, {n: s for j, (n, s) in enumerate(record.items.items()) if (i + j) % 3}
            )

    with pytest.raises(DataError, match="24 of 24 records cannot be used"):
        prepare(some, tmp_path, tmp_path / "out")
    dataset = prepare(some, tmp_path, tmp_path / "out", partial=True)
    split = dataset.split("train")
    for i, record in enumerate(list(some(tmp_path))[:18]):
        assert set(split[i].items) == set(record.items)
    assert split.having(["imu", "text"]).tolist() == [i for i in range(18) if i % 3 and (i + 1) % 3]
    assert split.lengths("imu")[0] == 0


def test_the_command_names_tokenizers_by_modality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: dict[str, Any] = {"text": "bytes", "waveform": None, "resample": False, "limit": None, "seed": 0}
    flags |= {"skip_bad": False, "overwrite": True}
    np.save(tmp_path / "none.npy", np.zeros(1))
    said = run_prepare("handwritten", None, tmp_path / "d", ["image.side=8", "image.levels=17"], None, flags)
    assert said.endswith("1300 train, 200 dev, 297 test")
    run_prepare("handwritten", None, tmp_path / "d", [], None, flags | {"tokenizer": ["text=words", "image=pixels"]})
    assert Dataset.open(tmp_path / "d").text_tokenizer("text").vocab_size == 13
    with pytest.raises(DataError, match="tokenizer 'mel_units' reads none; expected pixels"):
        run_prepare("handwritten", None, tmp_path / "d", [], None, flags | {"tokenizer": ["image=mel_units"]})
    with pytest.raises(DataError, match=r"expected a kind for sound, or NAME=KIND"):
        run_prepare("handwritten", None, tmp_path / "d", [], None, flags | {"tokenizer": ["image="]})


STORY: tuple[tuple[str, Any], ...] = (
    ("text", "It began "),
    ("imu", motion(0, 4)),
    ("imu", motion(1, 7)),
    ("text", " and ended"),
    ("place", np.array([3])),
)


def stories(root: Path) -> Iterator[Record]:
    yield Record("a", "train", segments=STORY)
    yield Record("b", "train", segments=STORY[1:3])
    yield Record("c", "test", segments=(*STORY[::-1], ("place", np.array([], int))))


def test_a_document_comes_back_segment_by_segment(tmp_path: Path) -> None:
    dataset = Dataset.open(prepare(stories, tmp_path, tmp_path / "out").path)
    assert dataset.manifest.documents and dataset.modalities == ("text", "imu", "place")
    for record in stories(tmp_path):
        (example,) = (e for e in dataset.split(record.split) if e.id == record.id)
        assert example.items == {} and example.segments is not None and record.segments is not None
        assert [name for name, _ in example.segments] == [name for name, _ in record.segments]
        for (_, stored), (_, source) in zip(example.segments, record.segments, strict=True):
            np.testing.assert_array_equal(stored, np.asarray(source))
    split = dataset.split("train")
    assert split.lengths("imu").tolist() == [11, 11] and split.counts("imu").tolist() == [2, 2]
    assert split.lengths("text").tolist() == [len("It began  and ended"), 0]
    assert split.having(["text", "place"]).tolist() == [0]
    assert split.segments(0, encoded=True)[0][1].tolist() == list(b"It began ")
    with pytest.raises(DataError, match="example 'a' has 2 segments of imu"):
        split.item(0, "imu")


def test_documents_have_units_and_words_of_their_own(tmp_path: Path) -> None:
    for i in range(8):
        write_audio(tmp_path / f"{i}.wav", tone(0.5, i), 8000)

    def heard(root: Path) -> Iterator[Record]:
        for i in range(8):
            sound = Sound((root / f"{i}.wav",))
            words = WORDS[i % 3] if i else "only here"
            yield Record(f"d{i}", "test" if i == 0 else "train", segments=(("text", words), ("speech", sound)) * 2)

    choices: dict[str, Any] = {"text": "words", "speech": SMALL}
    dataset = prepare(heard, tmp_path, tmp_path / "out", tokenizers=choices)
    units, words = dataset.tokenizer("speech"), dataset.text_tokenizer("text")
    assert isinstance(units, UnitTokenizer) and words.vocab_size == 3 + len(WORDS)
    train = dataset.split("train")
    assert train[0].seconds == pytest.approx(1.0)
    for i in range(len(train)):
        (_, text), (_, speech), *_ = train.segments(i, encoded=True)
        assert list(text) == words.encode(WORDS[(i + 1) % 3])
        np.testing.assert_array_equal(speech, units.encode(*read_audio(tmp_path / f"{i + 1}.wav")))
    assert train.token_lengths("text").tolist() == [2] * 7


def test_what_is_wrong_with_documents_is_told(tmp_path: Path) -> None:
    def bad(root: Path) -> Iterator[Record]:
        yield Record("a", "train", segments=STORY)
        yield Record("b", "train", segments=())
        yield Record("c", "train", segments=(("text", "x"), ("text", "  "), ("imu", np.zeros((0, 6), np.float32))))
        yield Record("d", "train", {"text": "no document"})

    with pytest.raises(DataError) as caught:
        prepare(bad, tmp_path, tmp_path / "out")
    told = str(caught.value)
    for expected in (
        "b: nothing in it",
        "c: segment 1 (text): empty text; segment 2 (imu): no frames",
        "d: no document as the others",
    ):
        assert expected in told, told
    mixed = [Example("a", "", 0.0, {}, (("text", "x"),)), Example("b", "", 0.0, {"text": "x"})]
    with pytest.raises(DataError, match="example 'b' is no document, and those before it are"):
        write_dataset(tmp_path / "out", {"train": mixed}, {})
    with pytest.raises(DataError, match=r"split 'test'.* documents everywhere or nowhere"):
        write_dataset(tmp_path / "out", {"train": mixed[:1], "test": mixed[1:]}, {})
    later = [mixed[0], Example("b", "", 0.0, {}, (("gps", np.array([1])),))]
    with pytest.raises(DataError, match="'b': gps as ids, expected text as text"):
        write_dataset(tmp_path / "out", {"train": later}, {})
    assert not (tmp_path / "out").exists()
    write_dataset(tmp_path / "out", {"train": later}, {"text": ByteTokenizer()}, arrays={"gps": None})


def test_the_page_s_example_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "check_tokenizer" in b]
    exec(block, {})


ITEMS = {
    "text": st.text(),
    "words": st.text(),
    "ids": st.lists(st.integers(0, 2**31 - 1)).map(lambda ids: np.array(ids, np.int64)),
    "sensor": st.integers(0, 4).map(lambda n: np.random.default_rng(n).normal(size=(n, 2, 3)).astype(np.float32)),
    "wave": st.integers(0, 9).map(lambda n: (np.arange(n) / 16).astype(np.float32)),
}
SEGMENTS = st.sampled_from(sorted(ITEMS)).flatmap(lambda name: st.tuples(st.just(name), ITEMS[name]))


@given(st.lists(st.lists(SEGMENTS, min_size=1, max_size=6), min_size=1, max_size=5), st.booleans())
@settings(deadline=None, max_examples=25)
def test_any_documents_and_examples_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[tuple[str, Any]]], documents: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "data"
    words = train_words(["a b"])
    written = [
        Example(f"{i}", "", 0.0, {} if documents else dict(row), tuple(row) if documents else None)
        for i, row in enumerate(rows)
    ]
    there = {name for row in rows for name, _ in row}
    dataset = write_dataset(
        path,
        {"train": written},
        {n: t for n, t in {"text": ByteTokenizer(), "words": words}.items() if n in there},
        waveforms=dict.fromkeys({"wave"} & there, 8000),
        arrays={n: shape for n, shape in {"ids": None, "sensor": (2, 3)}.items() if n in there},
        partial=True,
    )
    split = Dataset.open(dataset.path).split("train")
    for i, row in enumerate(rows):
        pairs = row if documents else list(dict(row).items())
        got = split.segments(i)
        if not documents:
            pairs = [(name, dict(pairs)[name]) for name, _ in got]
        assert [name for name, _ in got] == [name for name, _ in pairs]
        for (_, stored), (_, item) in zip(got, pairs, strict=True):
            np.testing.assert_array_equal(stored, item)
        for name in there:
            own = [item for n, item in pairs if n == name]
            assert split.counts(name)[i] == len(own)
            assert split.lengths(name)[i] == sum(len(o.encode()) if isinstance(o, str) else len(o) for o in own)
            encode = {"text": ByteTokenizer().encode, "words": words.encode}.get(name, lambda item: item)
            assert split.token_lengths(name)[i] == sum(len(encode(o)) for o in own)
            encoded = [ids for n, ids in split.segments(i, encoded=True) if n == name]
            for ids, item in zip(encoded, own, strict=True):
                np.testing.assert_array_equal(ids, np.asarray(encode(item)))
