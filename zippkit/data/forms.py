"""How items of each modality are stored: text, ids, 16-bit samples or floats; one by one, or as lists of segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zippkit.data.table import FULL_SCALE, Encode, Item
from zippkit.errors import DataError

if TYPE_CHECKING:
    import pyarrow

Kind: TypeAlias = Literal["text", "ids", "waveform", "features"]
"""Content of a column."""

MAX_ID = 2**31 - 1
_LOUDEST = 2.0
"""Resampling may carry a sample a little beyond 1; further out are integers that somebody forgot to scale."""


@dataclass(frozen=True)
class Form:
    """How one modality is stored."""

    kind: Kind
    n_ids: int | None = None
    """Number of ids that there are, of ids or of text's; not known of plain ids, which may be any."""
    shape: tuple[int, ...] = ()
    """Of one frame of features."""
    encode: Encode | None = None
    """Text to ids, which are stored beside it; None where its bytes are the ids."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers that are stored; ids take half the size where all fit."""
        if self.kind == "ids":
            return np.dtype(np.uint16 if self.n_ids is not None and self.n_ids <= 2**16 else np.uint32)
        return np.dtype({"text": np.uint8, "waveform": np.int16, "features": np.float32}[self.kind])

    def stored(self, item: Item) -> Any:
        """The item as Arrow is given it."""
        if self.kind == "text":
            return item
        if self.kind == "waveform":
            scaled = np.rint(np.asarray(item, np.float32) * FULL_SCALE)
            return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(self.dtype)
        return np.asarray(item).astype(self.dtype)

    def check(self, name: str, item: Item) -> None:
        """Look whether an item can be stored.

        Raises:
            DataError: it is of another type or shape, or a number in it is out of range.
        """
        if self.kind == "ids":
            _check_ids(name, np.asarray(item))
        elif self.kind == "waveform":
            _check_waveform(name, np.asarray(item))
        elif self.kind == "features":
            check_features(name, np.asarray(item), self.shape)

    def type_of(self) -> pyarrow.DataType:
        """Arrow's type of one item."""
        import pyarrow

        if self.kind == "text":
            return pyarrow.string()
        frame = pyarrow.from_numpy_dtype(self.dtype)
        for size in reversed(self.shape):
            frame = pyarrow.list_(frame, size)
        return pyarrow.list_(frame)

    def ids_form(self) -> Form:
        """How the ids of text are stored."""
        return Form("ids", self.n_ids)

    def column(self, items: Sequence[Any], present: Sequence[bool]) -> pyarrow.Array:
        """Stored items as an array; ``items`` are those that are present."""
        import pyarrow

        if self.kind == "text":
            given = iter(items)
            return pyarrow.array([next(given) if there else None for there in present], self.type_of())
        lengths = np.zeros(len(present), np.int64)
        lengths[np.asarray(present, bool)] = [len(item) for item in items]
        values = pyarrow.array(np.concatenate([*items, np.zeros((0, *self.shape), self.dtype)]).ravel())
        for size in reversed(self.shape):
            values = pyarrow.FixedSizeListArray.from_arrays(values, size)
        missing = None if all(present) else pyarrow.array(~np.asarray(present, bool))
        return pyarrow.ListArray.from_arrays(offsets_of(lengths), values, self.type_of(), mask=missing)


def offsets_of(lengths: Sequence[int] | NDArray[np.int64]) -> pyarrow.Array:
    """Where each of several runs begins, and the last ends."""
    import pyarrow

    return pyarrow.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def form_of(item: Item) -> Form:
    """How an item is stored of which nothing is known beforehand."""
    if isinstance(item, str):
        return Form("text")
    array = np.asarray(item)
    return Form("features", shape=array.shape[1:]) if np.issubdtype(array.dtype, np.floating) else Form("ids")


def _check_ids(name: str, ids: NDArray[Any]) -> None:
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or (ids.size and ids.min() < 0):
        raise DataError(f"{name} is {ids.dtype}{ids.shape}, expected ids in one dimension")
    if ids.max(initial=-1) > MAX_ID:
        raise DataError(f"{name} has id {ids.max()}, expected at most {MAX_ID}")


def _check_waveform(name: str, wave: NDArray[Any]) -> None:
    if wave.ndim != 1 or not np.issubdtype(wave.dtype, np.floating):
        raise DataError(f"{name} is {wave.dtype}{wave.shape}, expected floats of one channel, from -1 to 1")
    loudest = float(np.abs(wave).max(initial=0))
    if not loudest <= _LOUDEST:
        raise DataError(f"{name} has samples up to {loudest:g}, expected -1 to 1 (divide 16-bit samples by 32768)")


def check_features(name: str, frames: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Look whether an array is finite frames of a shape.

    Raises:
        DataError: it is not.
    """
    if frames.ndim < 1 or not np.issubdtype(frames.dtype, np.floating):
        raise DataError(f"{name} is {frames.dtype}{frames.shape}, expected frames of floats {('N', *shape)}")
    if frames.shape[1:] != shape:
        raise DataError(f"{name} has frames of shape {frames.shape[1:]}, expected {shape}")
    bad = np.argwhere(~np.isfinite(frames))
    if len(bad):
        place = tuple(bad[0].tolist())
        raise DataError(f"{name} has {frames[place]} at {list(place)}, expected finite numbers")
