"""Digits, spoken (Free Spoken Digit Dataset) and handwritten (scikit-learn's, imported where it is used)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from zippkit.data.readers.base import Reader, existing_folder
from zippkit.data.records import File, Record, spoken
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict
from zippkit.system.extras import require

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNTS = {"train": 2000, "dev": 200, "test": 300}
"""Strings of each split, unless others are asked for."""


class FsddConfig(Strict):
    """Options of the reader of the Free Spoken Digit Dataset."""

    max_digits: int = Field(
        1, ge=1, description="Longest string; 1 gives every recording once, and then `counts` must be left out."
    )
    counts: dict[str, int] | None = Field(
        None, description="Split to its number of strings, of 1 to `max_digits` digits; 2000, 200 and 300 if left out."
    )
    seed: int = Field(0, ge=0, description="Another seed draws other strings.")

    @model_validator(mode="after")
    def _counts_are_for_strings(self) -> Self:
        if self.max_digits == 1 and self.counts is not None:
            raise ValueError("counts are for strings of digits; leave them out or set max_digits above 1")
        return self


class Fsdd(Reader[FsddConfig]):
    """The digits, or strings joined from one speaker's.

    Recordings 0-4 of a speaker are test (the corpus's own rule), 5-9 dev, the others train; a string never mixes them.
    """

    Config: ClassVar[type[Strict]] = FsddConfig
    layout: ClassVar[str] = "recordings/<digit>_<speaker>_<index>.wav, or the same without recordings/"

    def read(self, root: Path) -> Iterator[Record]:
        base = existing_folder(root)
        base = base / "recordings" if (base / "recordings").is_dir() else base
        singles = [single for path in sorted(base.glob("*.wav")) if (single := _fsdd_file(path))]
        if self.options.max_digits == 1:
            yield from singles
            return
        for split, count in (self.options.counts or COUNTS).items():
            yield from self._joined([single for single in singles if single.split == split], split, count)

    def _joined(self, pool: list[Record], split: str, count: int) -> Iterator[Record]:
        if not pool and count:
            raise DataError(f"no recordings for {split}; expected {{digit}}_{{speaker}}_{{index}}.wav")
        # A stream per split: asking for more strings of one leaves the others as they were.
        rng = np.random.default_rng([self.options.seed, *split.encode()])
        speakers = sorted({single.speaker for single in pool})
        by_speaker = {speaker: [single for single in pool if single.speaker == speaker] for speaker in speakers}
        for index in range(count):
            speaker = speakers[rng.integers(len(speakers))]
            own = by_speaker[speaker]
            chosen = [own[i] for i in rng.integers(len(own), size=rng.integers(1, self.options.max_digits + 1))]
            files: tuple[File, ...] = tuple(file for single in chosen for file in single.files)
            text = " ".join(single.text or "" for single in chosen)
            yield spoken(f"{split}-{index:05d}", split, files, text, speaker)


def _fsdd_file(path: Path) -> Record | None:
    match = re.fullmatch(r"(\d)_(.+)_(\d+)", path.stem)
    if match is None:
        return None
    index = int(match[3])
    split = "test" if index < 5 else "dev" if index < 10 else "train"
    return spoken(path.stem, split, (path,), DIGITS[int(match[1])], match[2])


class Handwritten(Reader[Strict]):
    """scikit-learn's 1797 handwritten digits, 8 x 8 pixels of 17 grey levels, each with its name.

    Images 0 to 1299 are train, 1300 to 1499 dev, 1500 to 1796 test: blocks, because neighbours tend to be of the same
    one of the 13 writers, whom nothing names. The corpus comes with scikit-learn; it is the test half of "Optical
    Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI repository, CC BY 4.0).
    """

    layout: ClassVar[str] = "comes with scikit-learn"
    needs_root: ClassVar[bool] = False

    def read(self, root: Path) -> Iterator[Record]:
        del root
        require("sklearn")
        from sklearn.datasets import load_digits

        digits = load_digits()
        for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            split = "train" if index < 1300 else "dev" if index < 1500 else "test"
            items = {"text": DIGITS[int(label)], "image": image.astype(np.int64)}
            yield Record(f"image-{index:04d}", split, items)
