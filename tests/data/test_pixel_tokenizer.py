"""Images as runs of grey levels, and scikit-learn's handwritten digits as a dataset folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zippkit.cli.prepare_dataset import run_prepare
from zippkit.data.dataset import Dataset
from zippkit.data.image_corpora import pixels_of, prepare_pictures
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.readers import DIGITS, read
from zippkit.data.records import Record
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
    assert max(pixels_of(p).max() for p in pictures) == 16 and min(pixels_of(p).min() for p in pictures) == 0
    # A zero is empty in the middle and has ink around it, whatever the others look like.
    zeros = np.mean([pixels_of(p) for p in pictures if p.text == "zero"], axis=0)
    assert zeros[3:5, 3:5].max() < 4
    assert zeros[3:5, 2].min() > 10


def test_a_corpus_of_images_becomes_a_dataset(tmp_path: Path) -> None:
    dataset = prepare_pictures("handwritten", tmp_path / "data", text="words")
    tokenizer = dataset.tokenizer("image")
    assert isinstance(tokenizer, PixelTokenizer) and dataset.text_tokenizer("text").vocab_size == 13
    entry = dataset.manifest.modalities["image"]
    assert (entry.kind, entry.vocab_size, entry.begin, entry.end, entry.is_text) == ("pixels", 19, 17, 18, False)
    stored = {example.id: example for name in dataset.splits for example in dataset.split(name)}
    for picture in read("handwritten", ""):
        example = stored[picture.id]
        assert example.items["text"] == picture.text
        assert np.array_equal(tokenizer.decode(np.asarray(example.items["image"])), pixels_of(picture))
    with pytest.raises(DataError, match="image holds pixels, expected text"):
        dataset.text_tokenizer("image")


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    def odd() -> Iterator[Record]:
        yield Record("a", "train", {"image": np.zeros((8, 8), np.int64), "text": "zero"})
        yield Record("b", "train", {"image": np.zeros((9, 9), np.int64), "text": "zero"})

    with pytest.raises(DataError, match=r"b: image of shape \(9, 9\)"):
        prepare_pictures(odd, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    dataset = prepare_pictures(lambda: list(odd())[1:], tmp_path / "data", pixels=PixelTokenizer(9, 2))
    assert dataset.manifest.modalities["image"].vocab_size == 4


def test_the_command_needs_no_folder_and_takes_no_sound(tmp_path: Path) -> None:
    said = run_prepare("handwritten", None, tmp_path / "data", [], None, FLAGS)
    assert said == f"{tmp_path / 'data'}: 20 train, 20 dev, 20 test"
    assert Dataset.open(tmp_path / "data").manifest.source == {"kind": "handwritten", "limit": 20, "seed": 0}
    with pytest.raises(DataError, match=r"needs no folder; remove digits, units.stride=2, --skip-bad"):
        run_prepare("handwritten", Path("digits"), tmp_path / "b", ["units.stride=2"], None, FLAGS | {"skip_bad": True})
    with pytest.raises(DataError, match="no reader of kind 'handwriten' is registered; did you mean 'handwritten'"):
        run_prepare("handwriten", None, tmp_path / "b", [], None, FLAGS)
    with pytest.raises(DataError, match="no reader of kind 'handwriten' is registered; did you mean 'handwritten'"):
        prepare_pictures("handwriten", tmp_path / "b")
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
