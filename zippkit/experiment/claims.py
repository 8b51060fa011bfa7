"""Claims judged on a grid's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zippkit.experiment.format import Claim
from zippkit.experiment.results import BySeed, Results
from zippkit.experiment.statistics import Interval, Verdict, judge, paired, reason, wilcoxon


@dataclass(frozen=True)
class Judged:
    """A claim, and what our numbers say to it."""

    claim: Claim
    verdict: Verdict
    first: BySeed
    """For the seeds that both groups have, as in all that follows."""
    second: BySeed
    interval: Interval | None
    """Interval of first minus second."""
    p: float | None
    """Wilcoxon's, over sentences."""
    why: str
    """Why it cannot be told, or how it fails; empty where the verdict says it all."""
    cell: str | None = None
    """Of an `unchanged` group, the one that changed most: ``first`` is its change."""


def judge_claim(results: Results, claim: Claim) -> Judged:
    """Compare a claim's two groups, seed by seed."""
    if claim.is_ == "unchanged":
        return _judge_unchanged(results, claim)
    other = claim.than_metric or claim.metric
    first = _group(results, claim, claim.metric, claim.group)
    second = _group(results, claim, other, claim.than) if claim.than else dict.fromkeys(first, claim.than_value or 0.0)
    seeds = sorted(first.keys() & second.keys())
    first, second = ({seed: side[seed] for seed in seeds} for side in (first, second))
    differences = paired(first, second)
    verdict, interval = judge(claim.is_, differences, claim.within)
    why = reason(claim.is_, verdict, differences, claim.within)
    if claim.by and any(differences):
        verdict, why = _by(claim, first, second, differences)
    p = None
    if claim.of == "value" and claim.than:
        sides = ((claim.metric, claim.group), (other, claim.than))
        p = wilcoxon(*(results.sentences(metric, cells, seeds, claim.at) for metric, cells in sides))
    return Judged(claim, verdict, first, second, interval, p, why or _left_out(results, claim, verdict))


def _by(claim: Claim, first: BySeed, second: BySeed, differences: Sequence[float]) -> tuple[Verdict, str]:
    """The same against the other group's values moved by the relative margin."""
    factor = 1 - claim.by if claim.is_ == "below" else 1 + claim.by
    beyond = paired(first, {seed: factor * value for seed, value in second.items()})
    verdict, _ = judge(claim.is_, beyond)
    side = -1 if claim.is_ == "below" else 1
    if verdict is Verdict.FAILS and all(side * difference > 0 for difference in differences):
        return verdict, f"{claim.is_}, but by less than {100 * claim.by:g} %"
    return verdict, reason(claim.is_, verdict, beyond)


def _judge_unchanged(results: Results, claim: Claim) -> Judged:
    """Every cell of the group by itself: changes up and down would cancel in a mean."""
    changes = {cell: _group(results, claim, claim.metric, [cell]) for cell in claim.group}
    judged = {cell: judge("unchanged", list(values.values()), claim.within) for cell, values in changes.items()}
    worst = max(judged, key=lambda cell: max(map(abs, changes[cell].values()), default=-1.0))
    told = [verdict for verdict, _ in judged.values()]
    verdict = next((v for v in (Verdict.FAILS, Verdict.UNMEASURED, Verdict.UNKNOWN) if v in told), Verdict.HOLDS)
    decisive = worst if judged[worst][0] is verdict else next(cell for cell in judged if judged[cell][0] is verdict)
    first = changes[decisive]
    why = reason("unchanged", verdict, list(first.values()), claim.within) or _left_out(results, claim, verdict)
    cell = decisive if len(claim.group) > 1 else None
    return Judged(claim, verdict, first, dict.fromkeys(first, 0.0), judged[decisive][1], None, why, cell)


def _left_out(results: Results, claim: Claim, verdict: Verdict) -> str:
    """A preset may have other values of the axis than the claim's."""
    if verdict is Verdict.UNMEASURED and claim.at is not None and claim.at not in results.grid.values:
        return f"{claim.at:g} is not among this preset's values"
    return ""


def _group(results: Results, claim: Claim, metric: str, cells: Sequence[str]) -> BySeed:
    """A mean over the group's cells, for the seeds that all of them have."""
    axis = results.grid.experiment.axis
    if claim.of == "best_at":
        each = [results.best_at(metric, cell) for cell in cells]
        if axis is not None and axis.scale == "log":
            each = [{seed: math.log10(value) for seed, value in values.items()} for values in each]
    else:
        each = [results.values(metric, cell, claim.at) for cell in cells]
    seeds = set.intersection(*(set(values) for values in each))
    return {seed: sum(values[seed] for values in each) / len(each) for seed in sorted(seeds)}
