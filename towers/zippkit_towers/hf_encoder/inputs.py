"""Inputs of encoders, and the number of states that result, by each family's own formula; without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOUDEST = 16
"""A waveform's samples lie between -1 and 1; far beyond that they are integers that somebody forgot to scale."""


class Inputs(ABC):
    """The raw inputs of one segment."""

    @abstractmethod
    def n_states(self, values: NDArray[np.float32]) -> int:
        """Number of states that the encoder makes of them.

        Raises:
            ValueError: inputs of another shape, not finite, too short or too long.
        """

    @abstractmethod
    def example(self, size: int, seed: int) -> NDArray[np.float32]:
        """Random inputs of about ``size`` states, where their number can vary."""


@dataclass(frozen=True)
class Window(Inputs):
    """A waveform in a window of fixed length, padded with silence (Whisper, arXiv 2212.04356)."""

    length: int
    """States that come out, whatever the waveform's length."""
    samples_per_state: int

    @property
    def n_samples(self) -> int:
        """Samples of the whole window."""
        return self.length * self.samples_per_state

    def n_states(self, values: NDArray[np.float32]) -> int:
        """Number of states of these inputs; raises ValueError for inputs that do not fit."""
        n = _n_samples(values)
        if not 0 < n <= self.n_samples:
            raise ValueError(f"got {n} samples; expected 1 to {self.n_samples}, cut longer audio into several segments")
        return self.length

    def example(self, size: int, seed: int) -> NDArray[np.float32]:
        """Random inputs of about ``size`` states, where their number can vary."""
        return _noise((min(size * self.samples_per_state, self.n_samples),), seed)


@dataclass(frozen=True)
class Waveform(Inputs):
    """A waveform of any length, through convolutions without padding (wav2vec 2.0, arXiv 2006.11477)."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    def shrunk(self, n_samples: int) -> int:
        """States of so many samples; 0 or less where they are too few for one."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            n_samples = (n_samples - kernel) // stride + 1
        return n_samples

    def n_samples(self, n_states: int) -> int:
        """The fewest samples that make so many states."""
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            n_states = (n_states - 1) * stride + kernel
        return n_states

    def n_states(self, values: NDArray[np.float32]) -> int:
        """Number of states of these inputs; raises ValueError for inputs that do not fit."""
        n = _n_samples(values)
        if n < self.n_samples(1):
            raise ValueError(f"got {n} samples; expected at least {self.n_samples(1)}, of which one state is made")
        return self.shrunk(n)

    def example(self, size: int, seed: int) -> NDArray[np.float32]:
        """Random inputs of about ``size`` states, where their number can vary."""
        return _noise((self.n_samples(max(size, 1)),), seed)


@dataclass(frozen=True)
class Pixels(Inputs):
    """An image in patches behind one class token (ViT, arXiv 2010.11929)."""

    shape: tuple[int, int, int]
    """Channels, height, width."""
    patch: tuple[int, int]

    def n_states(self, values: NDArray[np.float32]) -> int:
        """Number of states of these inputs; raises ValueError for inputs that do not fit."""
        if values.shape != self.shape:
            raise ValueError(
                f"got an array of shape {values.shape}; expected (channels, height, width) = {self.shape}, "
                "as the model's image processor makes them"
            )
        _check_finite(values)
        return (self.shape[1] // self.patch[0]) * (self.shape[2] // self.patch[1]) + 1

    def example(self, size: int, seed: int) -> NDArray[np.float32]:
        """Random inputs of about ``size`` states, where their number can vary."""
        return _noise(self.shape, seed)


def _n_samples(values: NDArray[np.float32]) -> int:
    if values.ndim != 1:
        raise ValueError(f"got an array of shape {values.shape}; expected a waveform (samples,) of one channel")
    _check_finite(values)
    loudest = float(np.abs(values).max(initial=0))
    if loudest > LOUDEST:
        raise ValueError(f"got samples up to {loudest:.0f}; expected -1 to 1 (divide 16-bit samples by 32768)")
    return len(values)


def _check_finite(values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise ValueError("got values that are not finite")


def _noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
