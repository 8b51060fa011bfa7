"""Make the two datasets: spoken digits with their words and handwritten digits with theirs; and the same with both.

Needs a copy of the Free Spoken Digit Dataset (CC BY-SA 4.0); the images come with scikit-learn. From the repository:

    python recipes/three_from_pairs/make_data.py path/to/free-spoken-digit-dataset

takes half a minute and writes ``data/three_from_pairs``, in which no example has speech and an image, and
``data/three_all_pairs``, which has such pairs besides: each training recording with an image of the same digit. Test
images are as they are; a training image comes with a copy, turned and slanted. Both datasets have strings that count up
and down as text alone: a text tower that has read nothing but single words makes the same states of all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zippkit.data.audio import read_audio
from zippkit.data.dataset import Dataset, Example, Item, Tokenizer
from zippkit.data.dataset_writer import refuse_to_overwrite, write_dataset
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.readers import DIGITS, read
from zippkit.data.records import Record
from zippkit.data.text import train_words
from zippkit.data.units import UnitConfig, UnitTokenizer
from zippkit.errors import DataError, ZippkitError

UNITS = UnitConfig(sample_rate=8000, n_fft=256, n_mels=40, n_units=256)
SPLITS = ("train", "dev", "test")
N_COUNTED = 4000
"""Strings of text alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the Free Spoken Digit Dataset")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder that receives both datasets")
    parser.add_argument("--seed", type=int, default=0, help="of the units and of the pairs")
    parser.add_argument("--overwrite", action="store_true", help="replace datasets that are there already")
    arguments = parser.parse_args()
    try:
        for dataset in make(arguments.root, arguments.out, arguments.seed, arguments.overwrite):
            print(dataset.path, {name: len(dataset.split(name)) for name in dataset.splits})
    except ZippkitError as error:
        parser.exit(2, f"{error}\n")


def make(root: Path, out: Path, seed: int, overwrite: bool) -> Iterator[Dataset]:
    """Write both datasets, with the same tokenizers; recordings 0 to 4 of each speaker and digit are test."""
    for name in ("three_from_pairs", "three_all_pairs"):
        refuse_to_overwrite(out / name, overwrite)
    pixels, words = PixelTokenizer(), train_words(DIGITS)
    units, spoken = speech(root, seed)
    pictures = [*read("handwritten", ""), *turned(seed)]
    shown = {split: list(seen(pictures, split, pixels)) for split in SPLITS}
    pairs = {split: [*spoken[split], *shown[split]] for split in SPLITS}
    pairs["train"] += counted(seed)
    every = pairs | {"train": [*pairs["train"], *met(spoken["train"], shown["train"], seed)]}
    tokenizers: dict[str, Tokenizer] = {"text": words, "speech": units, "image": pixels}
    for name, splits in (("three_from_pairs", pairs), ("three_all_pairs", every)):
        source = {"kind": name, "speech": "fsdd", "images": "handwritten", "seed": seed}
        yield write_dataset(out / name, splits, tokenizers, source=source, partial=True, overwrite=overwrite)


def speech(root: Path, seed: int) -> tuple[UnitTokenizer, dict[str, list[Example]]]:
    """Units of the training recordings, and every recording as an example with the modalities text and speech."""
    recordings = list(read("fsdd", root))
    if not recordings:
        raise DataError(f"{root}: no recordings; expected {{digit}}_{{speaker}}_{{index}}.wav")
    waves = {recording.id: read_audio(recording.files[0])[0] for recording in recordings}
    units = UnitTokenizer.train((waves[r.id] for r in recordings if r.split == "train"), UNITS, seed)
    examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for recording in recordings:
        wave = waves[recording.id]
        items: dict[str, Item] = {"text": str(recording.text), "speech": units.encode(wave, UNITS.sample_rate)}
        seconds = len(wave) / UNITS.sample_rate
        examples[recording.split].append(Example(recording.id, recording.speaker, seconds, items))
    return units, examples


def seen(pictures: list[Record], split: str, tokenizer: PixelTokenizer) -> Iterator[Example]:
    """Pictures of a split as examples with the modalities text and image."""
    for picture in pictures:
        if picture.split == split:
            ids = tokenizer.encode(np.asarray(picture.items["image"]))
            yield Example(picture.id, "", 0.0, {"text": str(picture.text), "image": ids})


def turned(seed: int) -> Iterator[Record]:
    """Copies of the training images, turned by up to 11 degrees and slanted as much; 1300 are few to learn from."""
    from scipy.ndimage import affine_transform

    rng = np.random.default_rng(seed)
    middle = np.full(2, 3.5)
    for picture in read("handwritten", ""):
        if picture.split == "train":
            angle, slant = rng.uniform(-0.2, 0.2, size=2)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[1, 0], [slant, 1]]
            moved = affine_transform(np.asarray(picture.items["image"]).astype(float), turn, middle - turn @ middle)
            levels = np.clip(np.rint(moved), 0, 16).astype(np.int64)
            yield Record(f"{picture.id}-turned", picture.split, {**picture.items, "image": levels})


def counted(seed: int) -> Iterator[Example]:
    """Strings such as ``nine zero one`` or ``five four``: 2 to 8 digits, counted up or down."""
    rng = np.random.default_rng(seed)
    for i in range(N_COUNTED):
        first, step, length = rng.integers(10), rng.choice([1, -1]), rng.integers(2, 9)
        text = " ".join(DIGITS[(first + step * place) % 10] for place in range(length))
        yield Example(f"count-{i:04d}", "", 0.0, {"text": text})


def met(spoken: list[Example], shown: list[Example], seed: int) -> Iterator[Example]:
    """Each recording with a drawn image of the same digit, without the word."""
    rng = np.random.default_rng(seed)
    by_word = {word: [example for example in shown if example.items["text"] == word] for word in DIGITS}
    for one in spoken:
        of_word = by_word[str(one.items["text"])]
        other = of_word[rng.integers(len(of_word))]
        items = {"speech": one.items["speech"], "image": other.items["image"]}
        yield Example(f"{one.id}+{other.id}", one.speaker, one.seconds, items)


if __name__ == "__main__":
    main()
