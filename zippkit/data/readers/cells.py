"""What stands in a cell of a table or a segment of a document, as text, sound, picture, ids or frames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zippkit.data.records import File, Picture, Sound, Source
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict

Content: TypeAlias = Literal["text", "audio", "image", "ids", "features"]
CONTENTS: tuple[Content, ...] = ("text", "audio", "image", "ids", "features")
BY_NAME: dict[str, Content] = {"text": "text", "speech": "audio", "audio": "audio", "image": "image"}
"""What a modality of this name holds where nobody says."""


class Cell(Strict):
    """Where a modality stands, and what it is."""

    column: str = Field(description="Name of the column.")
    kind: Content | None = Field(
        None,
        description="text; audio, image: path of a file, or its bytes; ids: whole numbers; features: floats, one frame "
        "after the other. Left out, as the modality's name has it: text, speech, audio, image.",
    )
    vocab_size: int | None = Field(None, gt=0, description="Ids run from 0 to below this; of ids.")
    width: int | None = Field(None, gt=0, description="Numbers in a frame; of features. As in most rows if left out.")

    def source(self, value: Any, base: Path) -> Source | None:
        """What a cell holds; None where it is empty.

        Raises:
            DataError: it holds something else than ``kind`` says.
        """
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if self.kind in ("ids", "features"):
            array = _array(value, base)
            return _ids(array, self.vocab_size) if self.kind == "ids" else _frames(array, self.width)
        if self.kind == "text":
            if not isinstance(value, str):
                raise DataError(f"{_shown(value)}, expected text")
            return value.strip()
        files = tuple(_file(one, base) for one in (value if isinstance(value, list) else [value]))
        if self.kind == "audio" and files:
            return Sound(files)
        if self.kind == "image" and len(files) == 1:
            return Picture(files[0])
        raise DataError(f"{len(files)} files, expected {'one or more' if self.kind == 'audio' else 'one'}")


@dataclass(frozen=True)
class Embedded:
    """A file whose bytes stand in a cell."""

    name: str
    content: bytes

    def read_bytes(self) -> bytes:
        """Return the content."""
        return self.content

    def __str__(self) -> str:
        return self.name


def _file(value: Any, base: Path) -> File:
    """A path, relative to ``base``, or the bytes that `datasets` writes beside one."""
    if isinstance(value, str) and value.strip():
        return base / value.strip()
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return Embedded(Path(str(value.get("path") or "embedded")).name, value["bytes"])
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        return base / str(value["path"])
    raise DataError(f"{_shown(value)}, expected the path of a file, or {{path: ..., bytes: ...}}")


def _array(value: Any, base: Path) -> NDArray[Any]:
    """Numbers as they are written: a list, JSON in a text, numbers between spaces or commas, or the path of a .npy."""
    if isinstance(value, str):
        if value.strip().endswith(".npy"):
            return _loaded(base / value.strip())
        value = _parsed(value)
    if not isinstance(value, Sequence | np.ndarray):
        raise DataError(f"{_shown(value)}, expected a list of numbers, or the path of a .npy file")
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError("a list of lists of different lengths, expected frames of one shape") from None
    if array.size and not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise DataError(f"{_shown(value)}, expected numbers")
    return array


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text.lstrip().startswith("[") else [float(n) for n in text.replace(",", " ").split()]
    except ValueError:
        raise DataError(f"{_shown(text)}, expected numbers between spaces, or a list") from None


def _loaded(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable array ({error})") from None
    return array


def _ids(array: NDArray[Any], vocab_size: int | None) -> NDArray[np.int64]:
    """(N,) ids; whether they are negative is looked at for every reader (`array_check`)."""
    whole = array if np.issubdtype(array.dtype, np.integer) else np.floor(np.where(np.isfinite(array), array, 0))
    if (odd := np.argwhere(whole != array)).size:
        raise DataError(f"id {array[tuple(odd[0])]} at index {odd[0][0]}, expected whole numbers")
    ids = whole.astype(np.int64)
    if vocab_size is not None and ids.size and ids.max() >= vocab_size:
        raise DataError(f"id {ids.max()} at index {int(ids.argmax())}, expected 0 to {vocab_size - 1}")
    return ids


def _frames(array: NDArray[Any], width: int | None) -> NDArray[np.float32]:
    frames = array.astype(np.float32)
    if width is not None and (frames.shape[-1] if frames.ndim > 1 else 1) != width:
        raise DataError(f"frames of shape {frames.shape[1:]}, expected {width} numbers in each")
    return frames


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def cells_of(columns: Mapping[str, str | Cell], option: str = "columns") -> dict[str, Cell]:
    """Modality to its cell, each with a kind.

    Raises:
        DataError: nobody says what a modality holds; names each.
    """
    cells = {name: Cell(column=cell) if isinstance(cell, str) else cell for name, cell in columns.items()}
    unknown = [name for name, cell in cells.items() if cell.kind is None and name not in BY_NAME]
    if unknown:
        raise DataError(
            "\n".join(
                f"{option}.{name}: what it holds is missing; say {{column: {cells[name].column}, kind: ...}} with "
                f"one of {', '.join(CONTENTS)}"
                for name in unknown
            )
        )
    return {name: cell.model_copy(update={"kind": cell.kind or BY_NAME[name]}) for name, cell in cells.items()}
