"""Frames of floats to discrete units: windows of frames, values by their scale, and the nearest of k centroids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from zippkit.data.discrete_tokenizer import Ids, Progress
from zippkit.data.frame_tokenizer import Frames, FrameTokenizer
from zippkit.data.kmeans import Reservoir, cluster, nearest, windows
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict
from zippkit.system.files import appearing

_METADATA_KEY = "zippkit_frame_units"
_SAMPLE = 200_000
"""Windows that are clustered, drawn uniformly if there are more."""


class FrameUnitConfig(Strict):
    """Definition of a unit: how many frames it sees, and how many different ones there are."""

    window: int = Field(1, gt=0, description="Frames that one unit sees.")
    stride: int = Field(1, gt=0, description="Frames from one unit to the next; windows overlap where it is smaller.")
    n_units: int = Field(256, gt=0, le=65_534, description="Size of the codebook; begin and end ids come after it.")

    @model_validator(mode="after")
    def _no_gaps(self) -> Self:
        if self.stride > self.window:
            raise ValueError(f"stride {self.stride} skips frames between windows of {self.window}")
        return self


@dataclass(frozen=True, eq=False)
class FrameUnits(FrameTokenizer):
    """Vector quantisation by k-means (kind ``frame_units``); each value of a frame counts by its own spread."""

    Config: ClassVar[type[FrameUnitConfig]] = FrameUnitConfig
    kind: ClassVar[str] = "frame_units"

    config: FrameUnitConfig
    codebook: NDArray[np.float32]
    """(n_units, window * frame) centroids of scaled windows."""
    mean: NDArray[np.float32]
    """The shape of a frame: the training data's mean."""
    std: NDArray[np.float32]
    """The shape of a frame: the training data's spread, 1 where nothing varies."""

    @property
    def begin(self) -> int:
        """Id that opens a segment."""
        return self.config.n_units

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame."""
        return self.mean.shape

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what an id means."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for array in (self.codebook, self.mean, self.std):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @classmethod
    def train(
        cls,
        examples: Iterable[Frames],
        config: FrameUnitConfig | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """k-means over a sample of windows.

        Args:
            examples: arrays of frames (N, ...), read once and not kept.
            config: the defaults if left out.
            seed: of the sample and of the clustering.
            progress: told how far the clustering is.

        Raises:
            DataError: there are none, or fewer different windows than units.
        """
        config = config or FrameUnitConfig()
        sample = Reservoir(_SAMPLE, seed)
        shape: tuple[int, ...] = ()
        for frames in examples:
            shape = frames.shape[1:]
            sample.add(windows(_flat(frames), config.window, config.stride))
        frames_seen = rearrange(sample.rows, "u (w d) -> (u w) d", w=config.window)
        mean, std = frames_seen.mean(axis=0, dtype=np.float64), frames_seen.std(axis=0, dtype=np.float64)
        scale = np.where(std > 0, std, 1)
        scaled = (sample.rows - np.tile(mean, config.window)) / np.tile(scale, config.window)
        codebook = cluster(scaled.astype(np.float32), config.n_units, seed, progress)
        return cls(config, codebook, mean.reshape(shape).astype(np.float32), scale.reshape(shape).astype(np.float32))

    def encode(self, frames: Frames) -> NDArray[np.int64]:
        """(U,) unit ids of (N, ...) frames, without begin and end; one for each ``stride`` frames."""
        self.check_frames(frames)
        scaled = (np.asarray(frames, np.float32) - self.mean) / self.std
        return nearest(windows(_flat(scaled), self.config.window, self.config.stride), self.codebook)

    def decode(self, ids: Ids) -> Frames:
        """(N, ...) frames that units stand for, ``stride`` of each but the last."""
        units = self.units_of(ids)
        pieces = self.codebook[units].reshape(len(units), self.config.window, *self.shape)
        first = pieces[:-1, : self.config.stride].reshape(-1, *self.shape)
        frames: Frames = np.concatenate([first, *pieces[-1:]]) * self.std + self.mean
        return frames

    def save(self, path: str | Path) -> None:
        """One safetensors file, the config in its metadata."""
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray[Any]] = {"codebook": self.codebook, "mean": self.mean, "std": self.std}
        with appearing(path) as new:
            save_file(tensors, new, metadata={_METADATA_KEY: self.config.model_dump_json()})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing, cut short, or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                config = FrameUnitConfig.model_validate_json((file.metadata() or {})[_METADATA_KEY])
                codebook, mean, std = (file.get_tensor(name) for name in ("codebook", "mean", "std"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (KeyError, SafetensorError, OSError, ValidationError, json.JSONDecodeError) as error:
            raise DataError(f"{path}: not a readable tokenizer of frames ({' '.join(str(error).split())})") from None
        expected = (config.n_units, config.window * mean.size)
        if codebook.shape != expected or std.shape != mean.shape or not np.isfinite(codebook).all():
            raise DataError(f"{path}: a codebook of shape {codebook.shape}, expected {expected} finite numbers")
        return cls(config, codebook, mean, std)


def _flat(frames: Frames) -> NDArray[np.float32]:
    return np.asarray(frames, np.float32).reshape(len(frames), -1)
