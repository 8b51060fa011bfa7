"""The protocol of tokenizers of frames: readings of a sensor, or any float arrays, to ids and back.

Kinds are entry points of `zippkit.tokenizers`, as those of sound are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from zippkit.data.discrete_tokenizer import DiscreteTokenizer, Ids, Progress, registered
from zippkit.errors import DataError

Frames = NDArray[np.float32]
"""(N, ...) frames of one shape."""


class FrameTokenizer(DiscreteTokenizer):
    """Frames of floats to unit ids and back."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one frame."""

    @classmethod
    @abstractmethod
    def train(
        cls, examples: Iterable[Frames], config: Any = None, seed: int = 0, progress: Progress | None = None
    ) -> Self:
        """A tokenizer made from arrays of frames, read once; one that needs no training may leave them unread."""

    @abstractmethod
    def encode(self, frames: Frames) -> NDArray[np.int64]:
        """(U,) unit ids of (N, ...) frames, without begin and end.

        Raises:
            DataError: frames of another shape, none, or numbers that are not finite.
        """

    @abstractmethod
    def decode(self, ids: Ids) -> Frames:
        """(N, ...) frames that units stand for; begin and end are left out.

        Raises:
            DataError: an id is neither a unit nor begin or end.
        """

    def check_frames(self, frames: Frames) -> None:
        """Raise DataError unless ``frames`` can be encoded."""
        if frames.shape[1:] != self.shape or not len(frames):
            raise DataError(f"an array of shape {frames.shape}, expected {('N', *self.shape)}, N at least 1")
        if not np.isfinite(frames).all():
            place = np.argwhere(~np.isfinite(frames))[0].tolist()
            raise DataError(f"{frames[tuple(place)]} at {place}, expected finite numbers")


def frame_tokenizer_class(kind: str) -> type[FrameTokenizer]:
    """The class of a registered kind; raises as `registered`."""
    return registered(kind, FrameTokenizer, "frames of floats")  # type: ignore[type-abstract]
