"""One modality on its way from a corpus to a dataset: how its sources are opened, learnt from, and stored."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from zippkit.data import audio
from zippkit.data.audio import Wave
from zippkit.data.dataset import Tokenizer
from zippkit.data.discrete_tokenizer import Progress
from zippkit.data.forms import MAX_ID
from zippkit.data.frame_tokenizer import FrameTokenizer
from zippkit.data.pixel_tokenizer import Pixels, PixelTokenizer
from zippkit.data.records import Picture, Sound
from zippkit.data.speech_tokenizer import SpeechTokenizer
from zippkit.data.table import Item
from zippkit.data.text import ByteTokenizer, FileTokenizer
from zippkit.data.trained_or_new import TokenizerSource
from zippkit.errors import DataError
from zippkit.system.extras import require

Opened = TypeVar("Opened")


class Encoder(ABC, Generic[Opened]):
    """How one modality is prepared."""

    tokenizer: Tokenizer | None = None
    """What makes its ids, once it is trained; None where there are no ids, or they came as such."""
    rate: int | None = None
    """Samples a second, of sound."""
    shape: tuple[int, ...] | None = None
    """Of one frame, where frames are stored as they are."""
    learns: bool = False
    """Whether it may have to be trained."""

    @abstractmethod
    def open(self, source: Any) -> Opened:
        """Read a source.

        Raises:
            DataError: it cannot be used.
        """

    @abstractmethod
    def encode(self, opened: Opened) -> Item:
        """What the dataset stores."""

    @property
    def to_train(self) -> bool:
        """Whether `train` is still to be called."""
        return self.learns and self.tokenizer is None

    def train(self, opened: Iterable[Opened], seed: int, progress: Progress | None) -> None:
        """Learn from what was opened of the training splits, read once."""
        raise NotImplementedError(f"{type(self).__name__} learns nothing")

    def seconds(self, opened: Opened) -> float:
        """Duration, where there is one."""
        del opened
        return 0.0


class TextEncoder(Encoder[str]):
    """Text, of which the tokenizer is there before anything is opened."""

    def __init__(self, tokenizer: ByteTokenizer | FileTokenizer) -> None:
        self.tokenizer: ByteTokenizer | FileTokenizer = tokenizer

    def open(self, source: Any) -> str:
        if not source.strip():
            raise DataError("empty text")
        self.tokenizer.encode(source)
        return str(source)

    def encode(self, opened: str) -> Item:
        return opened


class SoundEncoder(Encoder[Wave]):
    """Sound, as units or as waveforms."""

    def __init__(self, source: TokenizerSource[SpeechTokenizer] | None, rate: int, resample: bool) -> None:
        self.learns = source is not None
        self._source, self.rate, self._resample = source, rate, resample
        self.tokenizer: SpeechTokenizer | None = source.trained if source else None

    def open(self, source: Sound) -> Wave:
        """(N,) samples at ``rate``, of all the recording's files."""
        assert self.rate is not None
        waves = []
        for file in source.files:
            wave, rate = audio.read_audio(file)
            if rate != self.rate and not self._resample:
                raise DataError(f"{file}: {rate} Hz, expected {self.rate}; resample=True (--resample) converts")
            waves.append(audio.resample(wave, rate, self.rate))
        return np.concatenate(waves)

    def train(self, opened: Iterable[Wave], seed: int, progress: Progress | None) -> None:
        assert self._source is not None
        self.tokenizer = self._source.make(opened, seed, progress)

    def encode(self, opened: Wave) -> Item:
        assert self.rate is not None
        return self.tokenizer.encode(opened, self.rate) if self.tokenizer else opened

    def seconds(self, opened: Wave) -> float:
        assert self.rate is not None
        return len(opened) / self.rate


class FramesEncoder(Encoder[NDArray[np.float32]]):
    """Frames of floats, as units or as they are; that all have one shape was looked at when they were read."""

    def __init__(self, source: TokenizerSource[FrameTokenizer] | None, shape: tuple[int, ...]) -> None:
        self.learns = source is not None
        self._source = source
        self.tokenizer: FrameTokenizer | None = source.trained if source else None
        self.shape = None if source else shape

    def open(self, source: Any) -> NDArray[np.float32]:
        frames: NDArray[np.float32] = np.asarray(source, np.float32)
        if self.tokenizer:
            self.tokenizer.check_frames(frames)
        elif not len(frames):
            raise DataError("no frames")
        return frames

    def train(self, opened: Iterable[NDArray[np.float32]], seed: int, progress: Progress | None) -> None:
        assert self._source is not None
        self.tokenizer = self._source.make(opened, seed, progress)

    def encode(self, opened: NDArray[np.float32]) -> Item:
        return self.tokenizer.encode(opened) if self.tokenizer else opened


class PictureEncoder(Encoder[Pixels]):
    """Square images of grey levels; a picture's file is made grey and small first."""

    def __init__(self, tokenizer: PixelTokenizer) -> None:
        self.tokenizer: PixelTokenizer = tokenizer

    def open(self, source: Any) -> Pixels:
        """(side, side) grey levels."""
        pixels = _levels(source, self.tokenizer) if isinstance(source, Picture) else np.asarray(source)
        self.tokenizer.encode(pixels)
        return pixels

    def encode(self, opened: Pixels) -> Item:
        return self.tokenizer.encode(opened)


class IdsEncoder(Encoder[NDArray[np.int64]]):
    """Ids that came as such."""

    def open(self, source: Any) -> NDArray[np.int64]:
        ids: NDArray[np.int64] = np.asarray(source, np.int64)
        if ids.max(initial=-1) > MAX_ID:
            raise DataError(f"id {ids.max()} at index {ids.argmax()}, expected at most {MAX_ID}")
        return ids

    def encode(self, opened: NDArray[np.int64]) -> Item:
        return opened


def _levels(picture: Picture, tokenizer: PixelTokenizer) -> Pixels:
    require("PIL")
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(picture.file.read_bytes())) as image:
            small = image.convert("L").resize((tokenizer.side, tokenizer.side), Image.Resampling.BOX)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{picture.file}: not a readable image ({' '.join(str(error).split())})") from None
    levels: Pixels = np.rint(np.asarray(small, np.float64) * (tokenizer.levels - 1) / 255).astype(np.int64)
    return levels
