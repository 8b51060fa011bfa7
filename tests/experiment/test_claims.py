"""Verdicts on claims, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from zippkit.experiment.statistics import Verdict, bootstrap, judge, paired, reason, wilcoxon


def test_the_interval_is_scipys() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, size=25)
    ours = bootstrap(list(values), resamples=50_000)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=50_000, rng=0)
    assert ours.mean == pytest.approx(values.mean())
    assert [ours.low, ours.high] == pytest.approx(list(theirs.confidence_interval), abs=0.03)


def test_an_interval_of_two_values_is_their_range() -> None:
    # A quarter of the resamples is 1, 1 and a quarter 3, 3.
    assert bootstrap([1.0, 3.0]) == (2.0, 1.0, 3.0)


def test_an_interval_of_three_values_by_hand() -> None:
    # One resample in 27 is 0, 0, 0, which is more than 2.5 %.
    assert bootstrap([0.0, 0.0, 3.0]) == (1.0, 0.0, 3.0)
    assert bootstrap([0.0, 3.0, 6.0])[1:] == (0.0, 6.0)


def test_of_nothing_there_is_no_interval() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_differences_are_paired_by_seed() -> None:
    assert paired({0: 1.0, 1: 5.0, 2: 9.0}, {1: 2.0, 2: 10.0, 7: 0.0}) == [3.0, -1.0]


def test_wilcoxons_p_is_scipys_and_by_hand() -> None:
    first = {str(i): value for i, value in enumerate([5.0, 4.0, 8.0, 7.0, 6.5])}
    second = {str(i): value for i, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.5])}
    # All five differences have one sign: two of the 2^5 assignments of signs are as extreme.
    assert wilcoxon(first, second) == pytest.approx(2 / 32)
    numbers = np.random.default_rng(0)
    many = {str(i): float(v) for i, v in enumerate(numbers.normal(size=40))}
    others = {name: value + float(numbers.normal(0.3)) for name, value in many.items()}
    theirs = scipy.stats.wilcoxon(list(many.values()), list(others.values())).pvalue
    assert wilcoxon(many, others) == pytest.approx(theirs)


def test_sentences_without_a_difference_or_a_partner_do_not_count() -> None:
    first = {"a": 1.0, "b": 0.5, "c": 0.0, "only here": 9.0}
    assert wilcoxon(first, {"a": 0.0, "b": 0.0, "c": 0.0}) == pytest.approx(0.5)
    assert wilcoxon(first, {"a": 1.0, "b": 0.5, "elsewhere": 3.0}) is None
    assert wilcoxon({}, {}) is None


@pytest.mark.parametrize(
    ("relation", "differences", "within", "verdict"),
    [
        ("below", [-1.0, -2.0, -1.5], 0.0, Verdict.HOLDS),
        ("below", [1.0, 2.0, 1.5], 0.0, Verdict.FAILS),
        ("below", [-1.0, 2.0, -1.5], 0.0, Verdict.UNKNOWN),
        ("below", [-1.0], 0.0, Verdict.UNKNOWN),
        ("below", [], 0.0, Verdict.UNMEASURED),
        ("below", [0.0, 0.0], 0.0, Verdict.FAILS),
        ("below", [-0.1, -0.2], 0.5, Verdict.UNKNOWN),
        ("above", [1.0, 2.0], 0.0, Verdict.HOLDS),
        ("above", [-1.0, -2.0], 0.0, Verdict.FAILS),
        ("above", [-1.0, 2.0], 0.0, Verdict.UNKNOWN),
        ("near", [-0.1, 0.2], 0.3, Verdict.HOLDS),
        ("near", [-0.1, 0.4], 0.3, Verdict.UNKNOWN),
        ("near", [0.4, 0.5], 0.3, Verdict.FAILS),
        ("near", [-0.4, -0.5], 0.3, Verdict.FAILS),
        ("near", [0.1], 0.3, Verdict.UNKNOWN),
        ("unchanged", [0.0, 0.0], 0.0, Verdict.HOLDS),
        ("unchanged", [0.0, 0.1], 0.0, Verdict.UNKNOWN),
        ("unchanged", [0.1, 0.1], 0.0, Verdict.FAILS),
    ],
)
def test_verdicts(relation: str, differences: list[float], within: float, verdict: Verdict) -> None:
    assert judge(relation, differences, within)[0] is verdict  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("relation", "differences", "within", "why"),
    [
        ("below", [0.0, 0.0, 0.0], 0.0, "no difference"),
        ("above", [0.0, 0.0], 0.1, "no difference"),
        ("below", [0.0, -0.1, -0.2], 0.0, "no difference in 1 of 3 seeds"),
        ("above", [0.0, 0.1], 0.0, "no difference in 1 of 2 seeds"),
        ("above", [-0.1, 0.1], 0.0, "the seeds do not agree"),
        ("below", [-0.1, -0.2], 0.5, "it may be less than matters"),
        ("near", [0.1, 0.4], 0.3, "true in 1 of 2 seeds"),
        ("near", [-0.4, 0.4], 0.3, "the seeds do not agree"),
        ("above", [0.2], 0.0, "one seed only"),
        ("above", [0.2, 0.1], 0.0, ""),
        ("above", [-0.2, -0.1], 0.0, ""),
    ],
)
def test_reasons_follow_from_the_differences(relation: str, differences: list[float], within: float, why: str) -> None:
    verdict, _ = judge(relation, differences, within)  # type: ignore[arg-type]
    assert reason(relation, verdict, differences, within) == why  # type: ignore[arg-type]


def test_the_last_bit_is_no_difference() -> None:
    one, other = (0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3
    assert one != other
    assert wilcoxon({"x": one}, {"x": other}) is None
    assert paired({0: one}, {0: other}) == [0.0]
    # Two equal differences are a tie, not two ranks.
    first, second = {"a": 0.3, "b": 0.1 + 0.2, "c": -0.5}, {"a": 0.0, "b": 0.0, "c": 0.0}
    assert wilcoxon(first, second) == pytest.approx(scipy.stats.wilcoxon([0.3, 0.3, -0.5]).pvalue)
