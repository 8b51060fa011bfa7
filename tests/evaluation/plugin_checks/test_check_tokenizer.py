"""`check_tokenizer` passes the tokenizers that there are, and names what a stranger's gets wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.sounds import SMALL
from zippkit.data.frame_units import FrameUnitConfig, FrameUnits
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError
from zippkit.testing import check_tokenizer

FRAMES = FrameUnitConfig(n_units=12, window=2, stride=2)


def test_zippkit_s_own_pass() -> None:
    assert check_tokenizer(UnitTokenizer, SMALL) == []
    assert check_tokenizer(FrameUnits, FRAMES) == ["rate: not checked, it is no tokenizer of sound"]


class Counts(FrameUnits):
    kind = "stranger_units"


class Outside(Counts):
    def encode(self, frames: Any) -> Any:
        return super().encode(frames) + 3


class Lists(Counts):
    def encode(self, frames: Any) -> Any:
        return super().encode(frames).tolist()


class Random(Counts):
    def encode(self, frames: Any) -> Any:
        return np.random.default_rng().permutation(super().encode(frames))


class Greedy(Counts):
    def encode(self, frames: Any) -> Any:
        ids = super().encode(frames)
        frames *= 0
        return ids


class Lenient(Counts):
    def check_frames(self, frames: Any) -> None:
        if frames.shape[1:] != self.shape:
            raise ValueError("shape")


class OneFingerprint(Counts):
    fingerprint = "0" * 64  # type: ignore[assignment]


class ShortFingerprint(Counts):
    fingerprint = "7"  # type: ignore[assignment]


class Forgets(Counts):
    @classmethod
    def load(cls, path: Any) -> Any:
        found = super().load(path)
        return cls(found.config, found.codebook[::-1], found.mean, found.std)


class AnyFile(Counts):
    @classmethod
    def load(cls, path: Any) -> Any:
        try:
            return super().load(path)
        except DataError:
            return cls.train([np.zeros((60, 3), np.float32) + np.arange(60)[:, None]], FRAMES)


class Beside(Counts):
    def save(self, path: Any) -> None:
        super().save(path)
        Path(path).with_suffix(".json").write_text("{}")


class Framed(Counts):
    def units_of(self, ids: Any) -> Any:
        return np.minimum(np.asarray(ids), self.begin - 1)


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        (Outside, "below `begin`"),
        (Lists, "encode gives a list, expected an array"),
        (Random, "encode gives other ids the second time"),
        (Greedy, "encode changes the example"),
        (Lenient, "encode takes frames of another shape: ValueError: shape; expected a DataError"),
        (Lenient, "encode takes a reading that is NaN: expected a DataError"),
        (OneFingerprint, "two tokenizers with one fingerprint"),
        (ShortFingerprint, "fingerprint is '7', expected a SHA-256"),
        (Forgets, "loaded, it gives other ids"),
        (AnyFile, "load takes a file cut short"),
        (AnyFile, "load takes a file that is missing"),
        (Beside, r"expected the one file"),
        (Framed, "begin and end ids change what ids become"),
        (Framed, "an id outside the vocabulary is taken"),
    ],
)
def test_what_is_wrong_is_named(cls: type[FrameUnits], told: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_tokenizer(cls, FRAMES)
    assert f"{cls.__name__} does not keep its protocol:" in str(caught.value)
    assert told in str(caught.value)


def test_what_nobody_registers_is_said() -> None:
    assert any("nobody registers 'stranger_units'" in reason for reason in check_tokenizer(Counts, FRAMES))


class Fast(UnitTokenizer):
    @property
    def units_per_second(self) -> float:
        return 3 * super().units_per_second

    def check_rate(self, wave: Any, rate: int) -> None:
        del wave, rate


def test_sound_at_another_rate() -> None:
    with pytest.raises(AssertionError) as caught:
        check_tokenizer(Fast, SMALL)
    assert "encode takes sound at another rate" in str(caught.value)
    assert "a second of sound becomes" in str(caught.value)
    with pytest.raises(TypeError, match="neither a SpeechTokenizer nor a FrameTokenizer"):
        check_tokenizer(int)  # type: ignore[arg-type]
