"""Corpora of labelled images: dataset folder of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from zippkit.data.corpus_splits import limited, split_names, transcript_tokenizer
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import refuse_to_overwrite, write_dataset
from zippkit.data.pixel_tokenizer import Pixels, PixelTokenizer
from zippkit.data.readers.corpus import kind_name, records_of
from zippkit.data.records import Record
from zippkit.errors import DataError


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
        kind: a reader's name, or a function without arguments.
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
    read = kind if isinstance(kind, str) else lambda root: kind()
    pictures = limited(records_of(read, ""), limit, seed)
    tokenizer = pixels or PixelTokenizer()
    return write_dataset(
        out,
        {split: picture_examples(pictures, split, tokenizer) for split in split_names(pictures)},
        {"text": transcript_tokenizer(text, pictures), "image": tokenizer},
        source={"kind": kind_name(kind), "limit": limit, "seed": seed},
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
