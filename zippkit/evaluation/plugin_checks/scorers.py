"""`check_scorer`: whether a recogniser keeps its protocol."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zippkit.data.audio import Wave
from zippkit.evaluation.plugin_checks.checks import run_checks
from zippkit.evaluation.recognisers.base import Scorer
from zippkit.spec.registry import SCORERS, kinds


def check_scorer(scorer: Scorer) -> list[str]:
    """Check that a scorer keeps its protocol (`Scorer`); what it makes of words is its own affair.

    Args:
        scorer: made with its config.

    Returns:
        What could not be checked, and why.

    Raises:
        AssertionError: says in one sentence each what is wrong, everything at once.
    """
    return run_checks(type(scorer).__name__, _CHECKS, scorer)


def _waves(rate: int) -> list[Wave]:
    """Tones and noise of several lengths, silence, and next to nothing."""
    numbers = np.random.default_rng(0)
    tones = [0.2 * np.sin(2 * np.pi * 200 * (i + 1) * np.arange(rate * (i + 1) // 2) / rate) for i in range(3)]
    noise = 0.1 * numbers.normal(size=rate)
    return [wave.astype(np.float32) for wave in (*tones, noise, np.zeros(rate), np.zeros(160))]


def _rate(scorer: Scorer) -> Iterator[str]:
    rate = scorer.sample_rate
    if type(rate) is not int or rate < 1:
        yield f"sample_rate is {rate!r}, expected a whole number of Hz"


def _registered(scorer: Scorer) -> Iterator[str]:
    values = [kind.value for kind in kinds(SCORERS)]
    own = f"{type(scorer).__module__}:{type(scorer).__qualname__}"
    if not isinstance(getattr(type(scorer), "Config", None), type):
        yield f"it has no Config, its settings{'' if own in values else f' (nor is it registered under {SCORERS})'}"


def _words(scorer: Scorer) -> Iterator[str]:
    waves = _waves(scorer.sample_rate)
    given = [wave.copy() for wave in waves]
    said = scorer.transcribe(waves)
    if not isinstance(said, list) or len(said) != len(waves) or not all(isinstance(words, str) for words in said):
        seen = f"{len(said)} of {type(said[0]).__name__}" if isinstance(said, list) and said else repr(said)
        yield f"transcribe of {len(waves)} waves gives {seen}, expected a list of as many strings"
        return
    if scorer.transcribe(waves) != said:
        yield "transcribe writes other words the second time: a score must not depend on chance"
    if [words for wave in waves for words in scorer.transcribe([wave])] != said:
        yield "an utterance is heard otherwise alone than beside others"
    if scorer.transcribe(waves[::-1]) != said[::-1]:
        yield "the answers do not follow the order of the waves"
    if any(not np.array_equal(wave, before) for wave, before in zip(waves, given, strict=True)):
        yield "transcribe changes the waves that it is given"


def _nothing(scorer: Scorer) -> Iterator[str]:
    if (said := scorer.transcribe([])) != []:
        yield f"transcribe of no waves gives {said!r}, expected an empty list"
    if not isinstance((said := scorer.transcribe([np.zeros(0, np.float32)]))[0], str):
        yield f"transcribe of a wave without samples gives {said!r}, expected a string"


_CHECKS = (_rate, _registered, _words, _nothing)
