"""The speech tokenizer protocol: sound to ids and back. Kinds are entry points of `zippkit.tokenizers`.

A package adds a kind with one class and one line::

    [project.entry-points."zippkit.tokenizers"]
    my_units = "my_package:MyUnits"
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from zippkit.data.audio import Wave
from zippkit.data.discrete_tokenizer import DiscreteTokenizer, Ids, Progress, registered
from zippkit.errors import DataError

__all__ = ["Ids", "Progress", "SpeechTokenizer", "Vocoder", "tokenizer_class"]


class Vocoder(Protocol):
    """Ids to sound, trained beside a tokenizer and kept in a file of its own."""

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of the tokenizer whose units it turns into sound."""

    def to_sound(self, ids: Ids, seed: int = 0) -> Wave:
        """Return samples at ``sample_rate``; begin and end are left out."""

    def save(self, path: str | Path) -> None:
        """Write one file."""


class SpeechTokenizer(DiscreteTokenizer):
    """Sound to unit ids and back; ids run from 0, then come ``begin`` and ``end``."""

    takes_vocoder: ClassVar[bool] = False
    """Whether `with_vocoder` is there; a kind with a decoder of its own needs none."""
    vocoder: Vocoder | None = None
    """A trained way back to sound, kept in a file of its own."""

    @property
    @abstractmethod
    def sample_rate(self) -> int:
        """Of the sound that is encoded and given back, in Hz."""

    @property
    @abstractmethod
    def units_per_second(self) -> float:
        """Units that a second of sound becomes."""

    @classmethod
    @abstractmethod
    def rate_for(cls, config: Any) -> int:
        """Sample rate of the recordings that ``train`` takes with these settings, in Hz.

        Raises:
            DataError: the model that they name cannot be used.
        """

    @classmethod
    @abstractmethod
    def train(cls, waves: Iterable[Wave], config: Any = None, seed: int = 0, progress: Progress | None = None) -> Self:
        """A tokenizer made from recordings at its sample rate; one that needs no training may leave them unread."""

    @abstractmethod
    def encode(self, wave: Wave, rate: int) -> NDArray[np.int64]:
        """(U,) unit ids of a recording, without begin and end.

        Raises:
            DataError: ``rate`` is not the tokenizer's, or there are no samples.
        """

    @abstractmethod
    def to_sound(self, ids: Ids, seed: int = 0) -> Wave:
        """Samples at ``sample_rate``; begin and end are left out.

        Raises:
            DataError: an id is neither a unit nor begin or end, or there is no way back to sound.
        """

    def with_vocoder(self, vocoder: Vocoder) -> Self:
        """The same tokenizer, with a trained way back to sound; ids mean what they did.

        Raises:
            DataError: this kind takes none, or it was trained for other units.
        """
        raise DataError(self.no_vocoder())

    @classmethod
    def no_vocoder(cls) -> str:
        """Message for somebody who wants one."""
        return f"{cls.kind} tokenizers have their own way back to sound, and take no vocoder; leave --vocoder out"

    def check_rate(self, wave: Wave, rate: int) -> None:
        """Raise DataError unless ``wave`` can be encoded."""
        expected = self.sample_rate
        if rate != expected:
            raise DataError(
                f"sound at {rate} Hz, expected {expected}; use resample(wave, {rate}, {expected}) on it first"
            )
        if len(wave) == 0:
            raise DataError("no samples to encode")

    def check_vocoder(self, vocoder: Vocoder) -> None:
        """Raise DataError if ``vocoder`` was trained for other units."""
        if vocoder.tokenizer_fingerprint != self.fingerprint:
            raise DataError(
                f"the vocoder is for the tokenizer {vocoder.tokenizer_fingerprint}, expected {self.fingerprint}; "
                "train it with this tokenizer's units"
            )


def tokenizer_class(kind: str) -> type[SpeechTokenizer]:
    """The class of a registered kind.

    Raises:
        UnknownKindError: nobody registers it; names the nearest.
        DataError: what is registered is no speech tokenizer, or calls itself otherwise.
    """
    return registered(kind, SpeechTokenizer, "sound")  # type: ignore[type-abstract]
