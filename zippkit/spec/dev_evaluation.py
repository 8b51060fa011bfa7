"""Evaluation while training: what is measured on a dev split, how often, which checkpoint is best, when to stop."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from pydantic import Field

from zippkit.errors import did_you_mean
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import Strict
from zippkit.spec.sampling import MOST_TOKENS
from zippkit.spec.task import Task
from zippkit.spec.validation import Complaint


class Best(Strict):
    """Which of the evaluated checkpoints is the best one."""

    metric: str = Field(
        description="`loss`; or, of a modality called text, `text_loss`, `text_wer` (word error rate) or "
        "`text_retention` (the tower's loss on its own modality)."
    )
    mode: Literal["min", "max"] = Field("min", description="Whether less or more of it is better.")

    def better(self, value: float, than: float) -> bool:
        """Whether a value is strictly better than another one; what is not a number is better than nothing."""
        return value < than if self.mode == "min" else value > than


class Validation(Strict):
    """Evaluation on a dev split while the composition is trained."""

    evaluate_every: int = Field(gt=0, description="Steps between evaluations; the last step is always evaluated.")
    split: str = Field("dev", description="Split of the dataset.")
    tasks: list[str] | None = Field(None, description="Tasks to evaluate; the trained ones if left out.")
    limit: int | None = Field(None, gt=0, description="Only the first so many examples of each task.")
    batch_size: int = Field(64, gt=0, description="Examples that are run together.")
    generate: bool = Field(
        True, description="Answer tasks that end in text greedily, and count word errors (`text_wer`); takes longest."
    )
    max_tokens: int = Field(256, gt=0, le=MOST_TOKENS, description="Longest answer, in tokens.")
    retention: bool = Field(
        True, description="Measure each tower's loss on its own modality (`text_retention`), where the split has it."
    )
    best: Best | None = Field(None, description="Keep the best checkpoint by this metric, apart from the last ones.")
    patience: int | None = Field(
        None, gt=0, description="Stop after so many evaluations in a row without a better `best.metric`."
    )
    model: Literal["last", "best"] = Field("last", description="Which checkpoint the finished run's `model/` is.")

    def parsed(self, trained: Sequence[Task]) -> list[Task]:
        """The tasks to evaluate, each once."""
        return list(dict.fromkeys([Task.parse(text) for text in self.tasks or ()] or trained))

    def measures(self) -> dict[str, object]:
        """What a value of `best.metric` depends on; values of other measures cannot be compared with it."""
        return self.model_dump(exclude={"evaluate_every", "patience", "model", "batch_size"})

    def complaints(self, spec: CompositionSpec, trained: Sequence[Task]) -> Iterator[Complaint]:
        """Yield what asks for a best metric that is not named, or names one that is not computed."""
        for key, asks in (("patience", self.patience is not None), ("model", self.model == "best")):
            if asks and self.best is None:
                yield (key,), "expected `best: {metric: ...}` with it, which says what is better"
        if self.best is not None:
            known = metric_names(self, spec, self.parsed(trained))
            if self.best.metric not in known:
                yield ("best", "metric"), unknown_metric(self.best.metric, known)


def metric_names(how: Validation, spec: CompositionSpec, tasks: Sequence[Task]) -> list[str]:
    """The metrics that tasks can have, before anybody knows which modalities are text."""
    hosts = spec.modalities
    predicting = [name for name, tower in spec.towers.items() if tower.settings.predicts]
    losses = [f"{hosts[name]}_loss" for task in tasks for name in (task.targets or predicting) if name in hosts]
    beginnings = [each for task in tasks for each in task.beginnings]
    errors = [f"{task.target}_wer" for task in beginnings if how.generate and task.conditions and not task.beside]
    own = [f"{name}_retention" for name in predicting if how.retention]
    return list(dict.fromkeys(["loss", *losses, *errors, *own]))


def unknown_metric(name: str, known: Collection[str]) -> str:
    """Say that a metric is never computed, and which one may be meant."""
    return f"no metric {name!r} is computed{did_you_mean(name, known)}"
