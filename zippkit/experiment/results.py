"""Numbers of a grid: each metric by cell, value of the axis and seed, and the claims judged on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zippkit.experiment.format import Claim, Value
from zippkit.experiment.grid import Grid
from zippkit.experiment.scores import Kept, Scores, read_scores
from zippkit.experiment.statistics import Interval, Verdict, judge, paired, wilcoxon
from zippkit.experiment.store import Record

At = Value | None
BySeed = dict[int, float]


@dataclass(frozen=True)
class Results:
    """A grid with the records of its runs."""

    grid: Grid
    records: Mapping[str, Record]
    _scores: dict[tuple[str, str], Scores] = field(default_factory=dict)

    def _of_seeds(self, cell: str, at: At) -> dict[int, dict[str, Scores]]:
        """Every seed's scores, by the experiment's own names of splits."""
        experiment = self.grid.experiment
        names = {name for metric in experiment.metrics.values() for name in metric.splits(experiment.metrics)}
        found: dict[int, dict[str, Scores]] = {}
        for job in self.grid.jobs:
            if (job.cell, job.value) == (cell, at) and job.key in self.records:
                known = self.records[job.key].evaluations
                splits = {name: self.grid.split(name) for name in sorted(names)}
                found[job.seed] = {name: self._read(job.key, there) for name, there in splits.items() if there in known}
        return found

    def _read(self, key: str, split: str) -> Scores:
        if (key, split) not in self._scores:
            self._scores[key, split] = read_scores(self.records[key].evaluations[split])
        return self._scores[key, split]

    def values(self, metric: str, cell: str, at: At = None) -> BySeed:
        """A metric's value for each seed that has one."""
        metrics = self.grid.experiment.metrics
        found = {seed: metrics[metric].value(scores, metrics) for seed, scores in self._of_seeds(cell, at).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def best_at(self, metric: str, cell: str) -> BySeed:
        """The value of the axis where the metric is lowest, for each seed that has all of them."""
        known = {at: self.values(metric, cell, at) for at in self.grid.values}
        seeds = set.intersection(*(set(values) for values in known.values()))
        return {seed: _low(known, seed) for seed in seeds}

    def sentences(self, metric: str, cells: Sequence[str], at: At = None) -> dict[str, float]:
        """Each sentence's word error rate, a mean over cells and seeds."""
        rates: dict[str, list[float]] = {}
        for cell in cells:
            for scores in self._of_seeds(cell, at).values():
                for sentence in self.grid.experiment.metrics[metric].sentences(scores):
                    rates.setdefault(sentence.id, []).append(sentence.rate)
        return {name: sum(each) / len(each) for name, each in rates.items()}

    def retention(self, cell: str, at: At = None) -> dict[str, dict[int, Kept]]:
        """What became of each tower's own modality, by tower and seed; on the first split that was evaluated."""
        found: dict[str, dict[int, Kept]] = {}
        for seed, scores in self._of_seeds(cell, at).items():
            first = scores.get("test") or next(iter(scores.values()), None)
            for tower, kept in first.retention.items() if first else ():
                found.setdefault(tower, {})[seed] = kept
        return found

    def failures(self) -> dict[str, str]:
        """Errors, by job."""
        failed = {str(job): self.records[job.key] for job in self.grid.jobs if job.key in self.records}
        return {job: record.error for job, record in failed.items() if record.status == "failed"}


def _low(known: Mapping[At, BySeed], seed: int) -> float:
    return float(min((values[seed], at) for at, values in known.items() if at is not None)[1])


@dataclass(frozen=True)
class Judged:
    """A claim, and what our numbers say to it."""

    claim: Claim
    verdict: Verdict
    first: BySeed
    second: BySeed
    interval: Interval | None
    """Of first minus second."""
    p: float | None
    """Wilcoxon's, over sentences."""
    why: str
    """Why it cannot be told; empty otherwise."""


def judge_claim(results: Results, claim: Claim) -> Judged:
    """Compare a claim's two groups, seed by seed."""
    other = claim.than_metric or claim.metric
    first = _group(results, claim, claim.metric, claim.group)
    second = _group(results, claim, other, claim.than) if claim.than else dict.fromkeys(first, 0.0)
    differences = paired(first, second)
    verdict, interval = judge(claim.is_, differences, claim.within)
    p = None
    if claim.of == "value" and claim.than:
        sides = ((claim.metric, claim.group), (other, claim.than))
        p = wilcoxon(*(results.sentences(metric, cells, claim.at) for metric, cells in sides))
    return Judged(claim, verdict, first, second, interval, p, _why(verdict, len(differences)))


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


def _why(verdict: Verdict, n_seeds: int) -> str:
    if verdict is not Verdict.UNKNOWN:
        return ""
    if n_seeds == 0:
        return "not measured"
    return "one seed only" if n_seeds == 1 else "the seeds do not agree"
