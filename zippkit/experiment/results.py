"""Numbers of a grid: each metric by cell, value of the axis and seed, and what was run, failed or was passed over."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from zippkit.evaluation.evaluation_file import parse_evaluation
from zippkit.experiment.format import Value
from zippkit.experiment.grid import Grid
from zippkit.experiment.scores import Kept, Scores, read_scores
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

    def sentences(self, metric: str, cells: Sequence[str], seeds: Collection[int], at: At = None) -> dict[str, float]:
        """Each sentence's word error rate, a mean over cells and some of the seeds."""
        rates: dict[str, list[float]] = {}
        for cell in cells:
            for scores in (scores for seed, scores in self._of_seeds(cell, at).items() if seed in seeds):
                for sentence in self.grid.experiment.metrics[metric].sentences(scores):
                    rates.setdefault(sentence.id, []).append(sentence.rate)
        return {name: sum(each) / len(each) for name, each in rates.items()}

    def retention(self, cell: str, at: At = None) -> dict[str, dict[int, Kept]]:
        """Return each tower's loss on its own modality, by tower and seed, on the first split evaluated."""
        found: dict[str, dict[int, Kept]] = {}
        for seed, scores in self._of_seeds(cell, at).items():
            first = scores.get("test") or next(iter(scores.values()), None)
            for tower, kept in first.retention.items() if first else ():
                found.setdefault(tower, {})[seed] = kept
        return found

    def done(self) -> set[str]:
        """Keys of the runs that have been trained and evaluated."""
        known = {job.key: self.records.get(job.key) for job in self.grid.jobs}
        open_splits = {job.key for job in self.grid.jobs if (r := known[job.key]) and r.lacks(job.splits)}
        return {key for key, record in known.items() if record and record.status == "done"} - open_splits

    def skipped(self) -> dict[str, list[str]]:
        """Return the tasks that were not scored, with the reason, and the jobs concerned."""
        found: dict[str, list[str]] = {}
        for job in self.grid.jobs:
            known = self.records[job.key].evaluations if job.key in self.records else {}
            for split in job.splits:
                for line in parse_evaluation(known.get(split, {})).skipped:
                    found.setdefault(f"{line} (split {split})", []).append(str(job))
        return found

    def failures(self) -> dict[str, str]:
        """Errors, by job."""
        failed = {str(job): self.records[job.key] for job in self.grid.jobs if job.key in self.records}
        return {job: record.error for job, record in failed.items() if record.status == "failed"}


def _low(known: Mapping[At, BySeed], seed: int) -> float:
    return float(min((values[seed], at) for at, values in known.items() if at is not None)[1])
