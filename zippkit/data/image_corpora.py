"""Corpora of labelled images: what they are, and a dataset folder of one. Imports scikit-learn where it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from zippkit.data.corpus_splits import limited, split_names, transcript_tokenizer
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import refuse_to_overwrite, write_dataset
from zippkit.data.pixel_tokenizer import Pixels, PixelTokenizer
from zippkit.data.readers import DIGITS
from zippkit.data.records import Record
from zippkit.errors import DataError, did_you_mean
from zippkit.system.extras import require

PictureReader = Callable[[], Iterator[Record]]


def handwritten() -> Iterator[Record]:
    """scikit-learn's 1797 handwritten digits, 8 x 8 pixels of 17 grey levels, each with its name.

    Images 0 to 1299 are train, 1300 to 1499 dev, 1500 to 1796 test: blocks, because neighbours tend to be of the same
    one of the 13 writers, whom nothing names. The corpus comes with scikit-learn; it is the test half of "Optical
    Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI repository, CC BY 4.0).
    """
    require("sklearn")
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "train" if index < 1300 else "dev" if index < 1500 else "test"
        items = {"text": DIGITS[int(label)], "image": image.astype(np.int64)}
        yield Record(f"image-{index:04d}", split, items)


PICTURE_READERS: dict[str, PictureReader] = {"handwritten": handwritten}


def prepare_pictures(
    kind: str | Callable[[], Iterable[Record]],
    out: str | Path,
    *,
    pixels: PixelTokenizer | None = None,
    text: str | Path = "bytes",
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Dataset:
    """Write a corpus of images as a dataset with the modalities ``text`` and ``image``.

    Args:
        kind: a reader's name, or a function like one.
        out: the dataset to write.
        pixels: size and levels of the images; 8 x 8 of 17 levels if left out.
        text: ``"bytes"``, ``"words"`` (the training split's own), or a ``tokenizer.json``.
        limit: at most so many images per split, drawn with ``seed``.
        seed: of that sample.
        overwrite: replace a dataset that is there.

    Raises:
        DataError: no such corpus, an image of another size, or ``out`` exists.
    """
    refuse_to_overwrite(Path(out), overwrite)
    if isinstance(kind, str) and kind not in PICTURE_READERS:
        raise DataError(f"no corpus of images {kind!r}{did_you_mean(kind, PICTURE_READERS)}")
    name = kind if isinstance(kind, str) else kind.__name__
    pictures = limited(list(PICTURE_READERS[kind]() if isinstance(kind, str) else kind()), limit, seed)
    if not pictures:
        raise DataError(f"no images of the kind {name}")
    tokenizer = pixels or PixelTokenizer()
    return write_dataset(
        out,
        {split: picture_examples(pictures, split, tokenizer) for split in split_names(pictures)},
        {"text": transcript_tokenizer(text, pictures), "image": tokenizer},
        source={"kind": name, "limit": limit, "seed": seed},
        overwrite=overwrite,
    )


def picture_examples(pictures: Iterable[Record], split: str, tokenizer: PixelTokenizer) -> Iterator[Example]:
    """The examples of one split, with the modalities ``text`` and ``image``.

    Raises:
        DataError: an image that the tokenizer does not take; names it.
    """
    for picture in pictures:
        if picture.split == split:
            try:
                ids = tokenizer.encode(pixels_of(picture))
            except DataError as error:
                raise DataError(f"{picture.id}: {error}") from None
            yield Example(picture.id, "", 0.0, {"text": picture.text or "", "image": ids})


def pixels_of(picture: Record) -> Pixels:
    """(height, width) grey levels.

    Raises:
        DataError: the record holds none.
    """
    pixels = picture.items.get("image")
    if not isinstance(pixels, np.ndarray):
        raise DataError("no grey levels under 'image'")
    return pixels
