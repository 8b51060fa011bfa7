"""Dataset folders: what is written is read, by others too, and nothing half written or changed is taken for one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.sounds import tone
from zippkit.data import dataset as dataset_module
from zippkit.data.block_checksums import write_block_checksums
from zippkit.data.dataset import Dataset, Example, Tokenizer
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.manifest import sha256_of
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.text import ByteTokenizer, train_words
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError


def examples(prefix: str, count: int) -> list[Example]:
    rng = np.random.default_rng(len(prefix) + count)
    return [
        Example(f"{prefix}{i}", f"s{i % 2}", 0.5 * i, {"text": f"two é {i}", "speech": rng.integers(0, 16, i % 7)})
        for i in range(count)
    ]


SPLITS = {"train": examples("a", 30), "dev": examples("b", 4), "test": examples("c", 5)}


def same(one: Example, other: Example) -> bool:
    return (one.id, one.speaker, one.seconds) == (other.id, other.speaker, other.seconds) and all(
        np.array_equal(one.items[name], other.items[name]) for name in one.items.keys() | other.items.keys()
    )


@pytest.fixture
def folder(tmp_path: Path, units: UnitTokenizer) -> Path:
    """A dataset of the three splits with both tokenizers."""
    tokenizers: dict[str, Tokenizer] = {"text": train_words(["two é"]), "speech": units}
    write_dataset(tmp_path / "data", SPLITS, tokenizers, source={"kind": "test"}, skipped=[("x", "no sound")])
    return tmp_path / "data"


def test_what_is_written_is_read(folder: Path) -> None:
    dataset = Dataset.open(folder)
    assert dataset.splits == ("train", "dev", "test") and dataset.modalities == ("text", "speech")
    for name, expected in SPLITS.items():
        split = dataset.split(name)
        assert len(split) == len(expected)
        assert all(map(same, split, expected))
    last = dataset.split("dev")[-1]
    assert last.id == "b3" and np.asarray(last.items["speech"]).dtype == np.int64
    assert dataset.manifest.source == {"kind": "test"}
    assert [(s.id, s.reason) for s in dataset.manifest.skipped] == [("x", "no sound")]
    dataset.verify()


@given(
    st.lists(
        st.tuples(st.text(), st.lists(st.integers(0, 65_535)), st.lists(st.integers(0, 255))), min_size=1, max_size=5
    )
)
@settings(deadline=None, max_examples=15)
def test_any_items_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, list[int], list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "data"
    written = [
        Example(f"{i}", "", 0.0, {"text": text, "speech": np.array(speech, int), "image": np.array(image, int)})
        for i, (text, speech, image) in enumerate(rows)
    ]
    write_dataset(path, {"all_of_it": written}, {})
    split = Dataset.open(path).split("all_of_it")
    assert all(map(same, split, written))
    assert split.lengths("image").tolist() == [len(image) for _, _, image in rows]
    assert split.lengths("text").tolist() == [len(text.encode()) for text, _, _ in rows]


def test_lengths_say_what_there_is_when_asked_for_something_else(folder: Path) -> None:
    split = Dataset.open(folder).split("train")
    assert split.lengths("speech").tolist() == [i % 7 for i in range(30)]
    with pytest.raises(DataError, match="no modality 'speach'; did you mean 'speech'"):
        split.lengths("speach")
    with pytest.raises(DataError, match="no split 'tests'; did you mean 'test'"):
        Dataset.open(folder).split("tests")
    with pytest.raises(IndexError, match="has 30 examples, asked for index 30"):
        split[30]


def test_tokenizers_come_back(folder: Path, units: UnitTokenizer) -> None:
    dataset = Dataset.open(folder)
    speech, text = dataset.tokenizer("speech"), dataset.tokenizer("text")
    assert isinstance(speech, UnitTokenizer)
    np.testing.assert_array_equal(speech.encode(tone(0.3, 1), 8000), units.encode(tone(0.3, 1), 8000))
    assert dataset.fingerprints == {"text": text.fingerprint, "speech": units.fingerprint}
    assert dataset.manifest.modalities["speech"].vocab_size == 18
    assert (text.begin, text.end) == (1, 2)


def test_a_frame_that_the_file_does_not_tell_is_kept(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    from zippkit.data.text import FileTokenizer

    odd = FileTokenizer(Tokenizer(models.WordLevel({"x": 0, "y": 1, "z": 2}, unk_token="x")), begin=2, end=1)
    written = [Example("a", "", 0.0, {"text": "x"})]
    text = write_dataset(tmp_path / "data", {"train": written}, {"text": odd}).tokenizer("text")
    assert (text.begin, text.end, text.fingerprint) == (2, 1, odd.fingerprint)


def test_modalities_without_tokenizers(tmp_path: Path) -> None:
    written = [Example("a", "", 0.0, {"text": "x", "image": np.array([3, 16])})]
    dataset = write_dataset(tmp_path / "data", {"train": written}, {})
    assert dataset.tokenizer("text").vocab_size == 258
    assert dataset.manifest.modalities["image"].vocab_size == 17 and dataset.fingerprints["image"] is None
    with pytest.raises(DataError, match="image came as plain ids"):
        dataset.tokenizer("image")
    assert not (tmp_path / "data" / "tokenizers").exists()


def test_hugging_face_opens_it_with_its_splits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 30, "dev": 4, "test": 5}
    expected = SPLITS["dev"][3]
    assert loaded["dev"][3]["text"] == expected.items["text"]
    assert loaded["dev"][3]["speech"] == list(expected.items["speech"])


def test_nothing_is_left_of_a_dataset_half_written(tmp_path: Path) -> None:
    def breaks() -> Iterator[Example]:
        yield SPLITS["train"][1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "data", {"train": SPLITS["train"], "dev": breaks()}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_when_told(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data exists already; overwrite=True \(--overwrite\)"):
        write_dataset(folder, {"train": examples("d", 2)}, {})
    assert Dataset.open(folder).splits == ("train", "dev", "test")
    write_dataset(folder, {"train": examples("d", 2)}, {}, overwrite=True)
    assert Dataset.open(folder).splits == ("train",)
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_a_dataset_survives_the_failure_of_its_successor(folder: Path) -> None:
    with pytest.raises(DataError):
        write_dataset(folder, {"train": []}, {}, overwrite=True)
    Dataset.open(folder).verify()


def test_other_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(DataError, match="is not a dataset"):
        write_dataset(tmp_path, SPLITS, {}, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_folders_that_are_no_dataset_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        Dataset.open(tmp_path / "none")
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    with pytest.raises(DataError, match=r"half written: manifest\.json is missing"):
        Dataset.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=3), "format_version: Input should be 1 or 2"),
        (lambda m: m.pop("splits"), "splits: Field required"),
        (lambda m: m["files"].pop("dev.arrow"), "nothing under `files` for dev.arrow"),
    ],
)
def test_a_broken_manifest_is_refused(folder: Path, change: object, message: str) -> None:
    assert callable(change)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message):
        Dataset.open(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not a dataset's manifest"):
        Dataset.open(folder)


def test_files_that_are_missing_or_cut_short_are_all_named(folder: Path) -> None:
    (folder / "dev.arrow").unlink()
    content = (folder / "train.arrow").read_bytes()
    (folder / "train.arrow").write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"train\.arrow has \d+ bytes, expected \d+; dev\.arrow is missing"):
        Dataset.open(folder)


@pytest.mark.parametrize("name", ["train.arrow", "tokenizers/text.json", "tokenizers/speech.safetensors"])
def test_a_changed_file_is_refused(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is not what was written"):
        Dataset.open(folder)
    monkeypatch.setattr(dataset_module, "_HASH_AT_OPEN", 0)
    if not name.endswith(".arrow"):
        with pytest.raises(DataError, match=f"{name} is not what was written"):
            Dataset.open(folder)
        return
    large = Dataset.open(folder)
    with pytest.raises(DataError, match=f"{name} is not what was written"):
        large.verify()


@pytest.mark.parametrize("cut", [100, 3000])
def test_a_broken_file_with_the_right_hash_is_still_one_clear_error(folder: Path, cut: int) -> None:
    path = folder / "train.arrow"
    path.write_bytes(path.read_bytes()[:-cut])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["train.arrow"] |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"train\.arrow: bytes from 0: not what was written"):
        Dataset.open(folder).split("train")[0]
    write_block_checksums(path, folder / "train.crc32", [0], [30])
    manifest["files"]["train.crc32"] |= {
        "bytes": (folder / "train.crc32").stat().st_size,
        "sha256": sha256_of(folder / "train.crc32"),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"train\.arrow: not a readable Arrow file"):
        Dataset.open(folder).split("train")[0]


def test_another_tokenizer_than_the_manifest_says_is_refused(folder: Path) -> None:
    path = folder / "tokenizers" / "text.json"
    train_words(["two é three"]).save(path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["tokenizers/text.json"] |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="the text tokenizer's fingerprint is"):
        Dataset.open(folder).tokenizer("text")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "splits are missing"),
        ({"train/1": SPLITS["train"]}, "expected names of letters"),
        ({"train": []}, "train.arrow: no examples"),
        ({"train": [Example("a", "", 0.0)]}, "expected some"),
        ({"train": [Example("a", "", 0.0, {"id": "x"})]}, "none of"),
        ({"train": [*SPLITS["train"], SPLITS["train"][3]]}, "two examples have the id 'a3'"),
        (
            {"train": [*SPLITS["train"], Example("z", "", 0.0, {"text": "x"})]},
            "'z': text as text, expected speech as ids",
        ),
        ({"train": [Example("a", "", 0.0, {"x": np.array([-1])})]}, "expected ids in one dimension"),
        ({"train": [Example("a", "", 0.0, {"x": np.array([[1, 2]])})]}, "int64"),
        ({"train": [Example("a", "", 0.0, {"x": np.array([2**31])})]}, "id 2147483648, expected at most 2147483647"),
        ({"train": SPLITS["train"], "dev": [Example("a", "", 0.0, {"text": "x"})]}, "split 'dev' has"),
    ],
)
def test_examples_that_do_not_agree_are_refused(tmp_path: Path, splits: dict[str, list[Example]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "data", splits, {})
    assert list(tmp_path.iterdir()) == []


def test_tokenizers_that_do_not_fit_are_refused(tmp_path: Path, units: UnitTokenizer) -> None:
    for tokenizers, message in (
        ({"speach": units}, "no example has; did you mean 'speech'"),
        ({"text": units}, "text is text, its tokenizer a UnitTokenizer"),
        ({"speech": train_words(["x"])}, "speech is ids, its tokenizer a FileTokenizer"),
    ):
        with pytest.raises(DataError, match=message):
            write_dataset(tmp_path / "data", SPLITS, tokenizers)
    framed = [Example("a", "", 0.0, {"speech": np.array([units.begin, 3])})]
    with pytest.raises(DataError, match="speech has id 16, its tokenizer only 16 units"):
        write_dataset(tmp_path / "data", {"train": framed}, {"speech": units})


MIXED = [
    Example("a", "", 0.0, {"speech": np.array([3, 15])}),
    Example("b", "", 0.0, {"text": "two", "image": np.array([0, 16, 4])}),
    Example("c", "", 0.0, {"image": np.array([], int), "text": "", "speech": np.array([1])}),
]


def test_an_example_may_lack_a_modality_when_told(tmp_path: Path, units: UnitTokenizer) -> None:
    tokenizers: dict[str, Tokenizer] = {"text": ByteTokenizer(), "speech": units, "image": PixelTokenizer()}
    splits = {"train": MIXED, "dev": MIXED[1:2]}
    dataset = write_dataset(tmp_path / "data", splits, tokenizers, partial=True)
    train = Dataset.open(tmp_path / "data").split("train")
    assert dataset.modalities == ("text", "speech", "image")
    assert [set(example.items) for example in train] == [set(example.items) for example in MIXED]
    assert all(map(same, train, MIXED))
    assert train.lengths("speech").tolist() == [2, 0, 1] and train.lengths("text").tolist() == [0, 3, 0]
    assert train.having(["text"]).tolist() == [1, 2] and train.having(["speech", "image"]).tolist() == [2]
    assert dataset.split("dev").having(["speech"]).tolist() == []
    with pytest.raises(DataError, match="no modality 'speach'"):
        train.having(["speach"])


def test_what_may_be_lacking_has_a_tokenizer_and_is_somewhere(tmp_path: Path, units: UnitTokenizer) -> None:
    known: dict[str, Tokenizer] = {"text": ByteTokenizer(), "image": PixelTokenizer()}
    for splits, tokenizers, message in (
        ({"train": MIXED}, known, "'b': image as ids, text as text, expected .*image, text only where there is any"),
        ({"train": MIXED[:1]}, known | {"speech": units}, "tokenizer for 'text', which no example has"),
        ({"train": [Example("x", "", 0.0)]}, known, "'x' has none of image, text"),
        ({"train": [Example("x", "", 0.0, {"text": "y"}), Example("z", "", 0.0, {"image": "y"})]}, known, "'z': image"),
        ({"train": [Example("x", "", 0.0, {"image": np.array([17])})]}, {"image": PixelTokenizer()}, "only 17 levels"),
    ):
        with pytest.raises(DataError, match=message):
            write_dataset(tmp_path / "data", splits, tokenizers, partial=True)
    with pytest.raises(DataError, match="'b': image as ids, text as text, expected speech as ids as in the first"):
        write_dataset(tmp_path / "data", {"train": MIXED}, {"speech": units})
    assert list(tmp_path.iterdir()) == []
