"""Discrete speech units: log-mel windows, the nearest of k centroids, and the way back to sound."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from zippkit.data.audio import Wave, log_mel, mel_filters, mel_to_sound
from zippkit.data.kmeans import Reservoir, cluster, nearest, windows
from zippkit.data.speech_tokenizer import Ids, Progress, SpeechTokenizer, Vocoder
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict
from zippkit.system.files import appearing

LEAST_STD = 1e-3
"""Keeps digital silence, where nothing varies, at zero instead of dividing by nothing."""
_METADATA_KEY = "zippkit_units"
"""One key only: safetensors writes several in no fixed order, and equal tokenizers should be equal files."""


class UnitConfig(Strict):
    """Definition of a unit: its spectrogram, how many frames it sees, and how many different ones there are."""

    sample_rate: int = Field(16_000, gt=0, description="Rate of the sound to encode, in Hz.")
    n_mels: int = Field(80, gt=0, description="Mel bands per frame.")
    hop: float = Field(0.01, gt=0, description="Time from one frame to the next, in seconds.")
    n_fft: int = Field(512, gt=0, multiple_of=2, description="Analysis window, in samples.")
    window: int = Field(6, gt=0, description="Frames that one unit sees.")
    stride: int = Field(4, gt=0, description="Frames from one unit to the next; windows overlap where it is smaller.")
    n_units: int = Field(1024, gt=0, le=65_534, description="Size of the codebook; begin and end ids come after it.")
    normalize: Literal["none", "utterance"] = Field(
        "none", description="`utterance` takes each recording's own mean and variance per band out (speaker, loudness)."
    )

    @model_validator(mode="after")
    def _no_gaps(self) -> Self:
        if self.stride > self.window:
            raise ValueError(f"stride {self.stride} skips frames between windows of {self.window}")
        if self.hop_samples < 1:
            raise ValueError(f"hop {self.hop} s is less than a sample at {self.sample_rate} Hz")
        return self

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return round(self.hop * self.sample_rate)

    @property
    def units_per_second(self) -> float:
        """Units that a second of sound becomes."""
        return self.sample_rate / (self.hop_samples * self.stride)


@dataclass(frozen=True, eq=False)
class UnitTokenizer(SpeechTokenizer):
    """Sound to unit ids and back: k-means on log-mel windows (kind ``mel_units``)."""

    Config: ClassVar[type[UnitConfig]] = UnitConfig
    kind: ClassVar[str] = "mel_units"
    takes_vocoder: ClassVar[bool] = True

    config: UnitConfig
    codebook: NDArray[np.float16]
    """(n_units, window * n_mels) centroids, exactly as they are stored."""
    mean: NDArray[np.float32]
    """(n_mels,) average level of the training recordings; what a normalised unit is played at."""
    std: NDArray[np.float32]
    """(n_mels,) average spread of the training recordings."""
    vocoder: Vocoder | None = None
    """A trained way back to sound; without one, units sound as their centroids."""

    @property
    def begin(self) -> int:
        """Id that opens a segment."""
        return self.config.n_units

    @property
    def sample_rate(self) -> int:
        """Sample rate of the sound, in Hz."""
        return self.config.sample_rate

    @property
    def units_per_second(self) -> float:
        """Units that a second of sound becomes."""
        return self.config.units_per_second

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what an id means."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for array in (self.codebook, self.mean, self.std):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @classmethod
    def rate_for(cls, config: Any) -> int:
        """Return the sample rate that ``train`` takes with these settings, in Hz."""
        rate: int = config.sample_rate
        return rate

    @classmethod
    def train(
        cls,
        waves: Iterable[Wave],
        config: UnitConfig | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        max_windows: int = 200_000,
    ) -> Self:
        """k-means over at most ``max_windows`` windows of ``waves``, a uniform sample if there are more.

        Args:
            waves: recordings at ``config.sample_rate``, read once and not kept.
            config: the defaults if left out.
            seed: of the sample and of the clustering.
            progress: told how far the clustering is.
            max_windows: size of the sample.

        Raises:
            DataError: there are fewer different windows than units.
        """
        config = config or UnitConfig()
        empty = cls(config, *_blank(config))
        sample = Reservoir(max_windows, seed)
        levels = []
        for wave in waves:
            mel = empty._mel(wave)
            levels.append((mel.mean(axis=0), mel.std(axis=0)))
            sample.add(empty._windows(mel))
        codebook = cluster(sample.rows, config.n_units, seed, progress).astype(np.float16)
        average: NDArray[np.float32] = np.mean(levels, axis=0, dtype=np.float32)
        return cls(config, codebook, average[0], average[1])

    def encode(self, wave: Wave, rate: int) -> NDArray[np.int64]:
        """(U,) unit ids of a recording, without begin and end; at least one, about ``units_per_second`` of them.

        Raises:
            DataError: ``rate`` is not the tokenizer's, or there are no samples.
        """
        self.check_rate(wave, rate)
        return nearest(self._windows(self._mel(wave)), self._centroids)

    def decode_mel(self, ids: Ids) -> NDArray[np.float32]:
        """(T, n_mels) log-mel frames; where windows overlap, their average. Begin and end ids are left out.

        Raises:
            DataError: an id is not in the codebook.
        """
        units = self.units_of(ids)
        window, stride, n_mels = self.config.window, self.config.stride, self.config.n_mels
        if not units.size:
            return np.zeros((0, n_mels), np.float32)
        pieces = rearrange(self._centroids[units], "u (w m) -> u w m", w=window)
        total = np.zeros(((len(units) - 1) * stride + window, n_mels), np.float32)
        weight = np.zeros((len(total), 1), np.float32)
        for offset in range(window):
            places = slice(offset, offset + (len(units) - 1) * stride + 1, stride)
            total[places] += pieces[:, offset]
            weight[places] += 1
        mel: NDArray[np.float32] = total / weight
        return mel * self.std + self.mean if self.config.normalize == "utterance" else mel

    def to_sound(self, ids: Ids, seed: int = 0) -> Wave:
        """Samples at ``config.sample_rate``, by the vocoder if there is one, else by Griffin-Lim on the centroids.

        Raises:
            DataError: an id is not in the codebook.
        """
        config = self.config
        if self.vocoder is not None:
            return self.vocoder.to_sound(self.units_of(ids), seed)
        return mel_to_sound(self.decode_mel(ids), config.sample_rate, config.n_fft, config.hop_samples, seed=seed)

    def with_vocoder(self, vocoder: Vocoder) -> Self:
        """Return the same tokenizer with a trained vocoder; ids mean what they did."""
        self.check_vocoder(vocoder)
        return replace(self, vocoder=vocoder)

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
                config = UnitConfig.model_validate_json((file.metadata() or {})[_METADATA_KEY])
                tensors: list[NDArray[Any]] = [file.get_tensor(name) for name in ("codebook", "mean", "std")]
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except KeyError:
            raise DataError(f"{path}: a safetensors file, but not a unit tokenizer's") from None
        except (SafetensorError, OSError, ValidationError, json.JSONDecodeError) as error:
            raise DataError(f"{path}: not a readable unit tokenizer ({' '.join(str(error).split())})") from None
        blanks: tuple[NDArray[Any], ...] = _blank(config)
        for tensor, blank in zip(tensors, blanks, strict=True):
            if tensor.shape != blank.shape or tensor.dtype != blank.dtype or not np.isfinite(tensor).all():
                shapes = f"{tensor.dtype}{tensor.shape}, expected finite {blank.dtype}{blank.shape}"
                raise DataError(f"{path}: a tensor is {shapes}")
        codebook, mean, std = tensors
        return cls(config, codebook, mean, std)

    @cached_property
    def _centroids(self) -> NDArray[np.float32]:
        return self.codebook.astype(np.float32)

    @cached_property
    def _filters(self) -> NDArray[np.float32]:
        return mel_filters(self.config.sample_rate, self.config.n_fft, self.config.n_mels)

    def _mel(self, wave: Wave) -> NDArray[np.float32]:
        if len(wave) == 0:
            raise DataError("no samples to encode")
        return log_mel(np.asarray(wave, np.float32), self._filters, self.config.hop_samples)

    def _windows(self, mel: NDArray[np.float32]) -> NDArray[np.float32]:
        """(T, n_mels) to (U, window * n_mels); the last frame is repeated so that every frame is in a window."""
        window, stride = self.config.window, self.config.stride
        if self.config.normalize == "utterance":
            mel = (mel - mel.mean(axis=0)) / np.maximum(mel.std(axis=0), LEAST_STD)
        return windows(mel, window, stride)


def _blank(config: UnitConfig) -> tuple[NDArray[np.float16], NDArray[np.float32], NDArray[np.float32]]:
    """Tensors of the right shapes and types, before training and to check a file against."""
    codebook = np.zeros((config.n_units, config.window * config.n_mels), np.float16)
    return codebook, np.zeros(config.n_mels, np.float32), np.ones(config.n_mels, np.float32)
