"""Metrics of an evaluated cell: word errors of a task, a tower's retention, or a mean of other metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field

from zippkit.errors import did_you_mean
from zippkit.experiment.scores import Scores, Sentence
from zippkit.spec.kinds import Strict
from zippkit.spec.task import Task
from zippkit.spec.validation import Complaint
from zippkit.spec.words import Name


class Metric(Strict):
    """One number of a cell; lower is better in all of them."""

    label: str = Field(description="Its name in tables and plots.")
    task: str | None = Field(None, description="Word error rate of this task, such as `speech -> text`.")
    split: Name = Field("test", description="Split of the dataset.")
    reference: Literal["gold", "target", "oracle"] = Field(
        "gold",
        description="Of a task that ends in speech: `gold`, the text; `target`, what the scorer hears in the true "
        "speech; `oracle`, that against the text.",
    )
    words: tuple[int, int | None] | None = Field(
        None, strict=False, description="Only sentences of so many words, both included; no upper bound where null."
    )
    retention: Name | None = Field(
        None, description="Change of this tower's loss on its own modality, in nats per token; 0: nothing was lost."
    )
    geometric_mean: list[Name] | None = Field(None, min_length=2, description="Of other metrics.")

    def complaints(self, metrics: Mapping[Name, Metric]) -> Iterator[Complaint]:
        """More or less than one thing to measure, or a mean of metrics that are not there."""
        if sum(given is not None for given in (self.task, self.retention, self.geometric_mean)) != 1:
            yield (), "expected one of `task`, `retention` and `geometric_mean`"
        if self.task is not None and ("" in (parsed := Task.parse(self.task)).modalities or not parsed.conditions):
            yield ("task",), f"expected a task such as `speech -> text`, got {self.task!r}"
        for name in dict.fromkeys(self.geometric_mean or []):
            if name not in metrics:
                yield ("geometric_mean",), f"no metric is called {name!r}{did_you_mean(name, metrics)}"
            elif metrics[name].geometric_mean:
                yield ("geometric_mean",), f"{name!r} is itself a mean; name what it is a mean of"
            elif not metrics[name].percent:
                yield ("geometric_mean",), f"{name!r} is a change of loss, which may be 0 or less; it has no such mean"

    @property
    def named_task(self) -> str | None:
        """The task as recipes and evaluations write it."""
        return None if self.task is None else str(Task.parse(self.task))

    @property
    def percent(self) -> bool:
        """Whether it is a rate of errors, rather than a loss."""
        return self.retention is None

    def splits(self, metrics: Mapping[Name, Metric]) -> set[Name]:
        """The splits that must be evaluated for it."""
        if self.geometric_mean:
            return {metrics[name].split for name in self.geometric_mean}
        return {self.split}

    def sentences(self, scores: Mapping[Name, Scores]) -> list[Sentence]:
        """The sentences that it counts; none where the task was not scored."""
        if self.named_task is None or self.split not in scores:
            return []
        low, high = self.words or (0, None)
        found = scores[self.split].sentences(self.named_task, self.reference)
        return [s for s in found if low <= s.length and (high is None or s.length <= high)]

    def value(self, scores: Mapping[Name, Scores], metrics: Mapping[Name, Metric]) -> float | None:
        """The number; None where it was not measured."""
        if self.geometric_mean:
            parts = [metrics[name].value(scores, metrics) for name in self.geometric_mean]
            known = [part for part in parts if part is not None]
            return math.prod(known) ** (1 / len(known)) if len(known) == len(parts) else None
        if self.retention is not None:
            kept = scores[self.split].retention.get(self.retention) if self.split in scores else None
            return kept.change if kept else None
        sentences = self.sentences(scores)
        words = sum(s.words for s in sentences)
        return sum(s.errors for s in sentences) / words if words else None
