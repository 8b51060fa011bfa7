"""Whether a difference can be told from chance: bootstrap intervals over seeds, and Wilcoxon's test over sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np

from zippkit.system.extras import require

DIGITS = 12
"""Differences are rounded to so many, as means of equal numbers taken in another order differ in the last bit."""
RESAMPLES = 10_000
LEVEL = 0.95
Relation = Literal["below", "above", "near", "unchanged"]


class Interval(NamedTuple):
    """A mean, and where 95 % of its bootstrap resamples lie."""

    mean: float
    low: float
    high: float


class Verdict(StrEnum):
    """Whether a claim holds here."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNKNOWN = "cannot be told"
    UNMEASURED = "not measured"


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979), 95 %; of two or three values it is about their range.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values to resample")
    numbers = np.asarray(values, dtype=np.float64)
    means = numbers[np.random.default_rng(seed).integers(len(numbers), size=(resamples, len(numbers)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # Means of equal numbers differ in the last bit; the mean of n zeros is 0 for all n.
    return Interval(float(numbers.mean()), float(low), float(high))


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """First minus second, for the seeds that both have."""
    return [round(first[seed] - second[seed], DIGITS) for seed in sorted(first.keys() & second.keys())]


def wilcoxon(first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test over the sentences that both have (section 4.1.5 of the paper).

    Sentences without a difference are left out, as Wilcoxon did; None where no other are left.
    """
    differences = [round(first[name] - second[name], DIGITS) for name in sorted(first.keys() & second.keys())]
    differences = [difference for difference in differences if difference]
    if not differences:
        return None
    require("scipy")
    from scipy.stats import wilcoxon as test

    return float(test(differences).pvalue)


def judge(relation: Relation, differences: Sequence[float], within: float = 0.0) -> tuple[Verdict, Interval | None]:
    """The verdict on "the first group is `relation` the second", from one difference for each seed.

    ``below`` and ``above`` hold where the interval lies on the claimed side of 0 by more than ``within``, and fail
    where it lies on the other side of 0, by however little, or where no seed has any difference. ``near`` and
    ``unchanged`` hold where it lies within ``within`` of 0, and fail where it lies outside.
    """
    if not differences:
        return Verdict.UNMEASURED, None
    interval = bootstrap(differences)
    if len(differences) < 2:
        return Verdict.UNKNOWN, interval
    if relation in ("near", "unchanged"):
        inside, outside = -within <= interval.low and interval.high <= within, _beyond(interval, within)
        return _verdict(inside, outside), interval
    sign = 1 if relation == "above" else -1
    low, high = sorted((sign * interval.low, sign * interval.high))
    return _verdict(low > within, high < 0 or low == high == 0), interval


def reason(relation: Relation, verdict: Verdict, differences: Sequence[float], within: float = 0.0) -> str:
    """Why `judge` could not tell, or what a claim that fails does not say itself; empty otherwise."""
    n_seeds = len(differences)
    if relation in ("below", "above") and verdict is Verdict.FAILS:
        return "" if any(differences) else "no difference"
    if verdict is not Verdict.UNKNOWN:
        return ""
    if n_seeds == 1:
        return "one seed only"
    if relation in ("near", "unchanged"):
        n_inside = sum(abs(difference) <= within for difference in differences)
        return f"true in {n_inside} of {n_seeds} seeds" if n_inside else "the seeds do not agree"
    if min(differences) < 0 < max(differences):
        return "the seeds do not agree"
    n_equal = sum(not difference for difference in differences)
    return f"no difference in {n_equal} of {n_seeds} seeds" if n_equal else "it may be less than matters"


def _beyond(interval: Interval, within: float) -> bool:
    return interval.low > within or interval.high < -within


def _verdict(holds: bool, fails: bool) -> Verdict:
    return Verdict.HOLDS if holds else Verdict.FAILS if fails else Verdict.UNKNOWN
