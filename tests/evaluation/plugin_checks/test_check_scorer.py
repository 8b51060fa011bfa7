"""`check_scorer` passes a scorer that keeps to the protocol, and names what a stranger's gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from zippkit.evaluation.recognisers.base import Scorer
from zippkit.spec.kinds import Strict
from zippkit.testing import check_scorer


class Loudness(Scorer):
    """Hears how loud it is."""

    Config = Strict

    def __init__(self, config: Any = None) -> None:
        del config

    @property
    def sample_rate(self) -> int:
        return 8000

    def transcribe(self, waves: Sequence[Any]) -> list[str]:
        return [f"{np.abs(wave).sum():.3f}" for wave in waves]


def test_a_scorer_that_keeps_to_it_passes() -> None:
    assert check_scorer(Loudness()) == []


class Padded(Loudness):
    def transcribe(self, waves: Sequence[Any]) -> list[str]:
        longest = max(map(len, waves), default=0)
        return [f"{np.abs(wave).sum() / max(1, longest):.6f}" for wave in waves]


class Sorted(Loudness):
    def transcribe(self, waves: Sequence[Any]) -> list[str]:
        return sorted(super().transcribe(waves))


class Chance(Loudness):
    def transcribe(self, waves: Sequence[Any]) -> list[str]:
        return [str(np.random.default_rng().random()) for _ in waves]


class Few(Loudness):
    def transcribe(self, waves: Sequence[Any]) -> list[str]:
        return [words for words in super().transcribe(waves) if words != "0.000"]


class Normalising(Loudness):
    def transcribe(self, waves: Sequence[Any]) -> list[str]:
        said = super().transcribe(waves)
        for i in range(len(waves)):
            waves[i][:] /= max(1e-6, np.abs(waves[i]).max(initial=0))
        return said


class Divides(Loudness):
    def transcribe(self, waves: Sequence[Any]) -> list[str]:
        return [str(sum(map(abs, wave)) / (1 / len(wave))) for wave in waves]


class Hertz(Loudness):
    sample_rate = 16_000.0  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        (Padded, "an utterance is heard otherwise alone than beside others"),
        (Sorted, "the answers do not follow the order of the waves"),
        (Chance, "transcribe writes other words the second time"),
        (Few, "transcribe of 6 waves gives 4 of str, expected a list of as many strings"),
        (Normalising, "transcribe changes the waves"),
        (Divides, "nothing: ZeroDivisionError"),
        (Hertz, "sample_rate is 16000.0, expected a whole number of Hz"),
    ],
)
def test_what_is_wrong_is_named(cls: type[Loudness], told: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_scorer(cls())
    assert told in str(caught.value)
