"""Claims judged on records, by hand."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_experiments import CLAIM, METRICS, made_up
from zippkit.experiment.claims import judge_claim
from zippkit.experiment.statistics import Verdict, judge
from zippkit.experiment.words import by_chance, comparison, explanation, ours


def test_numbers_and_verdicts_follow_from_the_records(tmp_path: Path) -> None:
    results = made_up(tmp_path, {("short", 0): 5, ("short", 1): 7, ("long", 0): 2, ("long", 1): 3})
    assert results.values("wer", "short") == {0: 0.5, 1: 0.7}
    lower, kept = (judge_claim(results, claim) for claim in results.grid.experiment.claims)
    assert (lower.verdict.value, kept.verdict.value) == ("holds", "holds")
    assert lower.interval == pytest.approx((-0.35, -0.4, -0.3))
    # Sentences 2 to 4 differ in both seeds, 5 and 6 in one: five differences of one sign.
    assert lower.p == pytest.approx(2 / 32)
    crossing = made_up(tmp_path, {("short", 0): 5, ("short", 1): 2, ("long", 0): 2, ("long", 1): 3})
    told = judge_claim(crossing, crossing.grid.experiment.claims[0])
    assert (told.verdict.value, told.why) == ("cannot be told", "the seeds do not agree")


def test_metrics_of_lengths_means_and_best_values(tmp_path: Path) -> None:
    metrics = {
        **deepcopy(METRICS),
        "long": {"label": "long", "task": "speech -> text", "words": [2, None]},
        "mean": {"label": "mean", "geometric_mean": ["wer", "wer"]},
    }
    axis = {"key": "train.steps", "label": "steps", "values": [1, 100], "scale": "log"}
    best = {"text": "t", "paper": "-", "metric": "wer", "group": ["long"], "is": "below", "than": ["short"]}
    results = made_up(
        tmp_path,
        {(cell, seed): 4 for cell in ("short", "long") for seed in (0, 1)},
        metrics=metrics,
        axis=axis,
        cells={"short": {"label": "S"}, "long": {"label": "L", "set": {"train.batch_size": 2}}},
        claims=[{**best, "of": "best_at"}],
        table={"columns": ["wer", "mean"], "best": "wer"},
    )
    assert results.values("long", "short", 1) == {}
    assert results.values("mean", "short", 1) == pytest.approx({0: 0.4, 1: 0.4})
    for job in results.grid.jobs:
        if job.cell == "short" and job.value == 100:
            results.records[job.key].evaluations["test"]["tasks"][0]["answers"][0]["hypothesis"] = "a"
    judged = judge_claim(results, results.grid.experiment.claims[0])
    assert (judged.first, judged.second) == ({0: 0.0, 1: 0.0}, {0: 2.0, 1: 2.0})
    assert judged.verdict.value == "holds"


def test_a_tie_is_no_disagreement(tmp_path: Path) -> None:
    results = made_up(tmp_path, {(cell, seed): 3 for cell in ("short", "long") for seed in (0, 1)})
    judged = judge_claim(results, results.grid.experiment.claims[0])
    assert (judged.verdict.value, judged.why) == ("does not hold", "no difference")


def test_a_partial_grid_compares_the_seeds_that_both_have(tmp_path: Path) -> None:
    results = made_up(tmp_path, {("short", 0): 5, ("short", 1): 9, ("long", 0): 4})
    judged = judge_claim(results, results.grid.experiment.claims[0])
    assert (judged.first, judged.second) == ({0: 0.4}, {0: 0.5})
    assert judged.interval == pytest.approx((-0.1, -0.1, -0.1))
    # Of seed 0 alone one sentence differs; with the other group's seed 1 it would be five.
    assert judged.p == 1.0
    assert (judged.verdict.value, judged.why) == ("cannot be told", "one seed only")
    assert "seed 1" not in ours(results, judged)
    nothing = made_up(tmp_path, {("short", 0): 5, ("long", 1): 4})
    judged = judge_claim(nothing, nothing.grid.experiment.claims[0])
    assert (judged.verdict.value, ours(nothing, judged)) == ("not measured", "not measured")


@pytest.mark.parametrize(
    ("value", "relation", "verdict"),
    [
        (0.35, "below", "holds"),
        (0.25, "below", "cannot be told"),
        (0.1, "above", "holds"),
        (0.1, "below", "does not hold"),
    ],
)
def test_an_absolute_bound(tmp_path: Path, value: float, relation: str, verdict: str) -> None:
    claim = {**CLAIM, "is": relation, "than": [], "than_value": value}
    results = made_up(tmp_path, {("long", 0): 2, ("long", 1): 3}, claims=[claim])
    judged = judge_claim(results, results.grid.experiment.claims[0])
    assert (judged.verdict.value, judged.p) == (verdict, None)
    assert comparison(results, judged.claim) == f"WER: Long is {relation} {100 * value:.1f} %"
    assert f"against {100 * value:.1f} %; difference" in ours(results, judged)


@pytest.mark.parametrize(
    ("relation", "long", "verdict", "why"),
    [
        ("below", 5, "holds", ""),  # 0.5 against 0.75 of 0.8, which is 0.6
        ("below", 7, "does not hold", "below, but by less than 25 %"),
        ("below", 8, "does not hold", "no difference"),
        ("below", 9, "does not hold", ""),
        ("above", 6, "holds", ""),  # 0.6 against 1.25 times 0.4, which is 0.5
    ],
)
def test_a_relative_margin(tmp_path: Path, relation: str, long: int, verdict: str, why: str) -> None:
    n_short = 4 if relation == "above" else 8
    errors = {("short", 0): n_short, ("short", 1): n_short, ("long", 0): long, ("long", 1): long}
    results = made_up(tmp_path, errors, claims=[{**CLAIM, "is": relation, "by": 0.25}])
    judged = judge_claim(results, results.grid.experiment.claims[0])
    assert (judged.verdict.value, judged.why) == (verdict, why)
    assert comparison(results, judged.claim) == f"WER: Long is {relation} Short by 25 % or more"


def test_unchanged_is_said_of_each_cell(tmp_path: Path) -> None:
    every = {(cell, seed): 1 for cell in ("short", "long") for seed in (0, 1)}
    claim = {"text": "Kept.", "paper": "-", "metric": "kept", "group": ["short", "long"], "is": "unchanged"}
    opposite = {("short", 0): 0.1, ("short", 1): 0.1, ("long", 0): -0.1, ("long", 1): -0.1}
    results = made_up(tmp_path, every, opposite, claims=[claim])
    judged = judge_claim(results, results.grid.experiment.claims[0])
    assert (judged.verdict.value, judged.cell) == ("does not hold", "short")
    assert ours(results, judged).startswith("Short: 0.1 (")
    assert comparison(results, judged.claim) == "text kept: Short / Long are unchanged"
    one = made_up(tmp_path, every, {("long", 0): 1e-14, ("long", 1): 1e-14}, claims=[claim])
    judged = judge_claim(one, one.grid.experiment.claims[0])
    assert (judged.verdict.value, judged.cell) == ("does not hold", "long")
    kept = made_up(tmp_path, every, claims=[claim])
    assert judge_claim(kept, kept.grid.experiment.claims[0]).verdict.value == "holds"
    half = made_up(tmp_path, {key: n for key, n in every.items() if key[0] == "short"}, claims=[claim])
    assert judge_claim(half, half.grid.experiment.claims[0]).verdict.value == "not measured"


def test_seeds_agree_by_chance_as_often_as_the_page_says() -> None:
    numbers = np.random.default_rng(0)
    for n_seeds in (2, 3):
        held = [judge("below", list(numbers.normal(size=n_seeds)))[0] is Verdict.HOLDS for _ in range(300)]
        assert np.mean(held) == pytest.approx(by_chance(n_seeds), abs=0.06)
    assert "25 % of all cases with 2 seeds, and in 12.5 % with 3" in explanation()
