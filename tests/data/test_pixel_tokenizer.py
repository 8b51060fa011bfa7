"""Images as runs of grey levels, and scikit-learn's handwritten digits as a dataset folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zippkit.cli.prepare_dataset import run_prepare
from zippkit.data.dataset import Dataset
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.prepare import prepare
from zippkit.data.readers import DIGITS, read
from zippkit.data.records import Picture, Record
from zippkit.errors import DataError
from zippkit.spec.kinds import Image

FLAGS: dict[str, Any] = {
    "text": "words",
    "waveform": None,
    "resample": False,
    "skip_bad": False,
    "limit": 20,
    "seed": 0,
    "overwrite": False,
}


def test_pixels_come_back_in_raster_order(tmp_path: Path) -> None:
    tokenizer = PixelTokenizer(side=3, levels=9)
    image = np.arange(9).reshape(3, 3)
    assert tokenizer.encode(image).tolist() == list(range(9))
    assert np.array_equal(tokenizer.decode(tokenizer.encode(image)), image)
    assert (tokenizer.begin, tokenizer.end, tokenizer.vocab_size) == (9, 10, 11)
    tokenizer.save(tmp_path / "pixels.json")
    again = PixelTokenizer.load(tmp_path / "pixels.json")
    assert again == tokenizer and again.fingerprint == tokenizer.fingerprint
    others = (PixelTokenizer(3, 8), PixelTokenizer(2, 9), PixelTokenizer())
    assert len({tokenizer.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_an_image_that_was_cut_short_or_runs_on_is_still_one() -> None:
    tokenizer = PixelTokenizer(side=2, levels=4)
    assert tokenizer.decode([4, 3, 2, 5]).tolist() == [[3, 2], [0, 0]]
    assert tokenizer.decode([3, 2, 1, 1, 3]).tolist() == [[3, 2], [1, 1]]
    assert tokenizer.decode([]).tolist() == [[0, 0], [0, 0]]
    assert tokenizer.drawn([3, 0, 0, 3]) == "@@  \n  @@"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 7)), r"shape \(8, 7\), expected \(8, 8\)"),
        (np.full((8, 8), 17), r"pixel 17 at \[0, 0\], expected 0 to 16"),
        (np.eye(8) * -1, r"pixel -1.0 at \[0, 0\]"),
        (np.full((8, 8), 0.5), r"pixel 0.5"),
        (np.full((8, 8), np.nan), r"pixel nan"),
    ],
)
def test_what_is_no_image_is_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PixelTokenizer().encode(image)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"zippkit": "pixels", "side": "8", "levels": 17}'):
        (tmp_path / "pixels.json").write_text(content)
        with pytest.raises(DataError, match="pixel tokenizer"):
            PixelTokenizer.load(tmp_path / "pixels.json")
    with pytest.raises(DataError, match="no readable pixel tokenizer"):
        PixelTokenizer.load(tmp_path / "none.json")
    with pytest.raises(DataError, match="side 0"):
        PixelTokenizer(side=0)


def test_the_handwritten_digits() -> None:
    pictures = list(read("handwritten", ""))
    counts = {split: sum(p.split == split for p in pictures) for split in ("train", "dev", "test")}
    assert counts == {"train": 1300, "dev": 200, "test": 297}
    assert {p.text for p in pictures if p.split == "test"} == set(DIGITS)
    assert len({p.id for p in pictures}) == len(pictures)
    assert (
        max(np.asarray(p.items["image"]).max() for p in pictures) == 16
        and min(np.asarray(p.items["image"]).min() for p in pictures) == 0
    )
    # A zero is empty in the middle and has ink around it, whatever the others look like.
    zeros = np.mean([np.asarray(p.items["image"]) for p in pictures if p.text == "zero"], axis=0)
    assert zeros[3:5, 3:5].max() < 4
    assert zeros[3:5, 2].min() > 10


def test_a_corpus_of_images_becomes_a_dataset(tmp_path: Path) -> None:
    dataset = prepare("handwritten", None, tmp_path / "data", text="words")
    tokenizer = dataset.tokenizer("image")
    assert isinstance(tokenizer, PixelTokenizer) and dataset.text_tokenizer("text").vocab_size == 13
    entry = dataset.manifest.modalities["image"]
    assert (entry.kind, entry.vocab_size, entry.begin, entry.end, entry.is_text) == ("pixels", 19, 17, 18, False)
    stored = {example.id: example for name in dataset.splits for example in dataset.split(name)}
    for picture in read("handwritten", ""):
        example = stored[picture.id]
        assert example.items["text"] == picture.text
        assert np.array_equal(tokenizer.decode(np.asarray(example.items["image"])), np.asarray(picture.items["image"]))
    with pytest.raises(DataError, match="image holds pixels, expected text"):
        dataset.text_tokenizer("image")


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    def odd(root: Path) -> Iterator[Record]:
        yield Record("a", "train", {"image": np.zeros((8, 8), np.int64), "text": "zero"})
        yield Record("b", "train", {"image": np.zeros((9, 9), np.int64), "text": "zero"})

    with pytest.raises(DataError, match=r"b: image: image of shape \(9, 9\)"):
        prepare(odd, None, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    for settings in (PixelTokenizer(9, 2), {"kind": "pixels", "side": 9, "levels": 2}):
        dataset = prepare(
            lambda root: list(odd(root))[1:], None, tmp_path / "data", tokenizers={"image": settings}, overwrite=True
        )
        assert dataset.manifest.modalities["image"].vocab_size == 4


def test_a_picture_s_file_becomes_grey_levels(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.kron(np.array([[0, 255], [128, 64]], np.uint8), np.ones((4, 4), np.uint8))).save(
        tmp_path / "a.png"
    )
    (tmp_path / "b.png").write_bytes(b"none")

    def files(root: Path) -> Iterator[Record]:
        for name in ("a", "b"):
            yield Record(name, "train", {"image": Picture(root / f"{name}.png"), "text": name})

    settings = {"image": {"side": 2, "levels": 5}}
    with pytest.raises(DataError, match=r"1 of 2 records cannot be used.*\n  b: image: b.png: not a readable image"):
        prepare(files, tmp_path, tmp_path / "out", tokenizers=settings)
    dataset = prepare(files, tmp_path, tmp_path / "out", tokenizers=settings, skip_bad=True)
    assert np.asarray(dataset.split("train").item(0, "image")).tolist() == [0, 4, 2, 1]


def test_the_command_needs_no_folder_and_takes_no_sound(tmp_path: Path) -> None:
    said = run_prepare("handwritten", None, tmp_path / "data", [], None, FLAGS)
    assert said == f"{tmp_path / 'data'}: 20 train, 20 dev, 20 test"
    source = Dataset.open(tmp_path / "data").manifest.source
    assert source == {"kind": "handwritten", "root": "", "options": {}, "limit": 20, "seed": 0, "resample": False}
    with pytest.raises(DataError, match=r"needs no folder; remove digits"):
        run_prepare("handwritten", Path("digits"), tmp_path / "b", [], None, FLAGS)
    with pytest.raises(DataError, match=r"holds no sound, only text, image; remove --waveform, --resample"):
        run_prepare("handwritten", None, tmp_path / "b", [], None, FLAGS | {"waveform": 8000, "resample": True})
    with pytest.raises(DataError, match=r"holds no sound, only text, image; remove --units"):
        run_prepare("handwritten", None, tmp_path / "b", ["units.stride=2"], None, FLAGS)
    with pytest.raises(DataError, match=r"tokenizer for 'imag': .* no such modality; did you mean 'image'"):
        run_prepare("handwritten", None, tmp_path / "b", ["imag.side=9"], None, FLAGS)
    with pytest.raises(DataError, match=r"image.sid: unknown key 'sid'; did you mean 'side'"):
        run_prepare("handwritten", None, tmp_path / "b", ["image.sid=9"], None, FLAGS)
    with pytest.raises(DataError, match="no reader of kind 'handwriten' is registered; did you mean 'handwritten'"):
        run_prepare("handwriten", None, tmp_path / "b", [], None, FLAGS)
    with pytest.raises(DataError, match="no reader of kind 'handwriten' is registered; did you mean 'handwritten'"):
        prepare("handwriten", None, tmp_path / "b")
    with pytest.raises(DataError, match="corpus kind fsdd needs its folder"):
        run_prepare("fsdd", None, tmp_path / "b", [], None, FLAGS)


def test_an_image_is_scaled_for_a_tower_that_is_fed_pixels() -> None:
    tokenizer = PixelTokenizer(2, 5)
    pixels = tokenizer.scaled([0, 1, 2, 4], Image(3, 4, 6))
    assert pixels.dtype == np.float32 and pixels.shape == (3, 4, 6)
    drawn = [[-1, -1, -1, -0.5, -0.5, -0.5], [0, 0, 0, 1, 1, 1]]
    for channel in pixels:
        np.testing.assert_array_equal(channel, np.repeat(drawn, 2, axis=0))
    assert tokenizer.fits(Image(1, 4, 6)) and not tokenizer.fits(Image(1, 4, 5)) and not tokenizer.fits(Image(1, 3, 4))
