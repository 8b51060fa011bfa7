"""Small square images: grey levels to ids and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zippkit.errors import DataError
from zippkit.spec.kinds import Image
from zippkit.system.files import parse_json, write_text

Pixels = NDArray[np.int64]
"""(side, side) grey levels, 0 without ink."""

SHADES = " .:-=+*#%@"
"""From no ink to full ink, as `PixelTokenizer.drawn` prints them."""


@dataclass(frozen=True)
class PixelTokenizer:
    """Square images to runs of grey levels in raster order, then begin and end."""

    side: int = 8
    levels: int = 17

    def __post_init__(self) -> None:
        if self.side < 1 or not 2 <= self.levels <= 65_534:
            raise DataError(f"side {self.side} and levels {self.levels}, expected at least 1, and 2 to 65534")

    @property
    def begin(self) -> int:
        """Id that opens a segment."""
        return self.levels

    @property
    def end(self) -> int:
        """Id that closes a segment."""
        return self.levels + 1

    @property
    def vocab_size(self) -> int:
        """Number of ids, begin and end included."""
        return self.levels + 2

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what an id means."""
        return hashlib.sha256(f"zippkit pixels {self.side} {self.levels}".encode()).hexdigest()

    def encode(self, image: ArrayLike) -> Pixels:
        """(side * side,) ids of a (side, side) image, whose values are whole numbers below ``levels``.

        Raises:
            DataError: another shape, or a value that is no level.
        """
        pixels = np.asarray(image)
        if pixels.shape != (self.side, self.side):
            raise DataError(f"image of shape {pixels.shape}, expected {(self.side, self.side)}")
        wrong = ~((pixels >= 0) & (pixels < self.levels) & (pixels == np.floor(pixels)))
        if wrong.any():
            seen = pixels[wrong][0]
            raise DataError(f"pixel {seen} at {np.argwhere(wrong)[0].tolist()}, expected 0 to {self.levels - 1}")
        return pixels.astype(np.int64).ravel()

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> Pixels:
        """The (side, side) image of ids, however many: what is missing at the end has no ink, what is too much is cut.

        Ids that are no level (begin, end) are left out.
        """
        given = np.asarray(ids, dtype=np.int64)
        given = given[(given >= 0) & (given < self.levels)][: self.side**2]
        return np.pad(given, (0, self.side**2 - len(given))).reshape(self.side, self.side)

    def fits(self, shape: Image) -> bool:
        """Whether `scaled` can fill an image of that shape: both sides are whole multiples of the tokenizer's."""
        return shape.height % self.side == 0 and shape.width % self.side == 0

    def scaled(self, ids: Sequence[int] | NDArray[np.integer], shape: Image) -> NDArray[np.float32]:
        """Return (channels, height, width) floats for a tower that is fed pixels.

        No ink is -1, full ink 1; each pixel becomes a block of equal ones, and all channels are alike.
        """
        image = self.decode(ids).astype(np.float32) * 2 / (self.levels - 1) - 1
        block = np.ones((shape.height // self.side, shape.width // self.side), np.float32)
        return np.repeat(np.kron(image, block)[None], shape.channels, axis=0)

    def drawn(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The image as ``side`` lines of characters, each pixel two wide."""
        shade = self.decode(ids) * (len(SHADES) - 1) // (self.levels - 1)
        return "\n".join("".join(2 * SHADES[level] for level in row) for row in shade)

    def save(self, path: str | Path) -> None:
        """Write the file that ``load`` reads."""
        write_text(path, json.dumps({"zippkit": "pixels", "side": self.side, "levels": self.levels}) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing or something else.
        """
        try:
            content: Any = parse_json(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: no readable pixel tokenizer ({error})") from None
        given: dict[str, Any] = content if isinstance(content, dict) else {}
        side, levels = given.get("side"), given.get("levels")
        if given.get("zippkit") != "pixels" or type(side) is not int or type(levels) is not int:
            raise DataError(f"{path}: not a pixel tokenizer's file")
        return cls(side, levels)
