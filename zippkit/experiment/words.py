"""A claim's comparison in words: what was compared, what came out, by which seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from zippkit.experiment.claims import Judged
from zippkit.experiment.format import Claim
from zippkit.experiment.results import BySeed, Results
from zippkit.experiment.statistics import Interval, Verdict
from zippkit.experiment.tables import shown_value


def comparison(results: Results, claim: Claim) -> str:
    """Such as ``test-clean: Zipper is below Single Decoder``."""
    experiment = results.grid.experiment
    labels = [_labels(results, names) for names in (claim.group, claim.than)]
    axis = experiment.axis
    metric = experiment.metrics[claim.metric].label
    if claim.of == "best_at" and axis is not None:
        metric = f"{axis.label} at which {metric} is lowest"
    elif claim.at is not None:
        metric += f" at {shown_value(results, claim.at)}"
    other = f" ({experiment.metrics[claim.than_metric].label})" if claim.than_metric else ""
    verb = "are" if len(claim.group) > 1 else "is"
    than = labels[1] if claim.than_value is None else _Show(results, claim).value(claim.than_value)
    margin = f"by {100 * claim.by:g} % or more" if claim.by else ""
    words = [f"{metric}:", labels[0], verb, claim.is_, than + other, margin]
    return " ".join(word for word in words if word)


def _labels(results: Results, names: Sequence[str]) -> str:
    return " / ".join(results.grid.experiment.cells[name].label for name in names)


def ours(results: Results, judged: Judged) -> str:
    """Our numbers for a claim: means, every seed, the difference with its interval, and Wilcoxon's p."""
    if not judged.first:
        return "not measured"
    show = _Show(results, judged.claim)
    told = show.group(judged.first)
    if judged.cell is not None:
        most = " changed most" if judged.verdict is Verdict.HOLDS else ""
        told = f"{results.grid.experiment.cells[judged.cell].label}{most}: {told}"
    if judged.claim.than:
        told += f" against {show.group(judged.second)}"
    elif judged.claim.than_value is not None:
        told += f" against {show.value(judged.claim.than_value)}"
    if judged.interval is not None and judged.claim.is_ != "unchanged":
        several = len(judged.first.keys() & judged.second.keys()) > 1
        told += f"; difference {show.interval(judged.interval, several)}"
    if judged.claim.within:
        told += f"; up to {show.one(judged.claim.within)} does not matter"
    if judged.p is not None:
        told += f"; Wilcoxon over sentences: p = {judged.p:.2g}"
    return told


class _Show:
    """Numbers of a claim as text."""

    def __init__(self, results: Results, claim: Claim) -> None:
        axis = results.grid.experiment.axis
        self._percent = results.grid.experiment.metrics[claim.metric].percent and claim.of == "value"
        self._decades = claim.of == "best_at" and axis is not None and axis.scale == "log"

    def one(self, value: float) -> str:
        return f"{100 * value:.1f}" if self._percent else f"{value:.4g}"

    def value(self, value: float) -> str:
        """With its unit."""
        return f"{self.one(value)} %" if self._percent else self.one(value)

    def group(self, values: BySeed) -> str:
        """The mean, and every seed's value."""
        if not values:
            return "not measured"
        if self._decades:
            return "/".join(f"{10**value:.3g}" for value in values.values())
        each = ", ".join(f"seed {seed}: {self.one(value)}" for seed, value in values.items())
        return f"{self.value(statistics.fmean(values.values()))} ({each})"

    def interval(self, interval: Interval, several: bool) -> str:
        """The mean difference, and its interval where there are several seeds."""
        low, high = self.one(interval.low), self.one(interval.high)
        unit = " points" if self._percent else " decades" if self._decades else ""
        return f"{self.one(interval.mean)}{unit}" + (f", 95 % interval [{low}, {high}]" if several else "")


def explanation() -> str:
    """Explain the tables' numbers and how a claim is judged."""
    return (
        "alone → inside: the tower's loss on its own modality, in nats per token, before training and inside the "
        "composition after it. A claim holds or not by the differences of the seeds, paired: where the bootstrap "
        "interval of their mean (95 %; of two or three seeds it is their range) contains 0, or with fewer than 2 "
        "seeds, it cannot be told; with no difference in any seed, below and above do not hold. Seeds may agree by "
        "chance: between two systems that are no different, below or above would hold in "
        f"{100 * by_chance(2):g} % of all cases with 2 seeds, and in {100 * by_chance(3):g} % with 3."
    )


def by_chance(n_seeds: int) -> float:
    """Probability that all of two or three seeds lie on one given side if both sides are equally likely."""
    return 0.5**n_seeds
