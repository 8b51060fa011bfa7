"""What is measured while training: tasks and towers by themselves, on dev splits; checked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from zippkit.data.dataset import Dataset
from zippkit.errors import DataError
from zippkit.plan.graph import Graph
from zippkit.spec.dev_evaluation import Validation, unknown_metric
from zippkit.spec.task import Task
from zippkit.training.task_data import TaskData


@dataclass(frozen=True)
class DevTask:
    """A task on a dev split."""

    data: TaskData
    n_examples: int
    """Of those that are measured."""
    decode: Callable[[Sequence[int]], str] | None = None
    """Ids of its target to text, where its answers are to be read."""


@dataclass(frozen=True)
class DevData:
    """Everything that one evaluation looks at."""

    how: Validation
    tasks: tuple[DevTask, ...]
    answered: tuple[DevTask, ...]
    """Those whose answers are read; of a sequence of targets, also those of its beginnings that end in text."""
    own: tuple[DevTask, ...]
    """Of each tower that predicts, its own modality."""
    metrics: tuple[str, ...]
    """Names of what is computed."""


class DevSource(NamedTuple):
    """A dataset on which a run is evaluated while it trains."""

    dataset: Dataset
    split: str
    tasks: Sequence[Task]


def dev_data(how: Validation, sources: Sequence[DevSource], graph: Graph) -> DevData:
    """Open the dev splits.

    Args:
        how: the recipe's `validation`.
        sources: the datasets.
        graph: of the composition.

    Raises:
        DataError: a split that a dataset lacks, examples that a tower cannot take, and a metric that cannot be
            computed; tells of every dataset and task.
    """
    tasks, answered, own, wrong = list[DevTask](), list[DevTask](), list[DevTask](), list[str]()
    for source in sources:
        if source.split not in source.dataset.splits:
            wrong.append(_no_split(source.dataset, source.split))
            continue
        beginnings = [each for task in source.tasks for each in task.beginnings if _is_read(how, source.dataset, each)]
        for found_in, which in (
            (tasks, source.tasks),
            (answered, dict.fromkeys(beginnings)),
            (own, _own(how, source, graph)),
        ):
            for task in which:
                try:
                    found_in.append(_opened(how, source, task, graph))
                except DataError as error:
                    wrong.append(f"validation: {error}")
    found = DevData(how, tuple(tasks), tuple(answered), tuple(own), _metrics(tasks, answered, own, graph))
    if not wrong and how.best is not None and how.best.metric not in found.metrics:
        wrong.append(f"validation.best.metric: {unknown_metric(how.best.metric, found.metrics)}")
    if wrong:
        raise DataError("\n".join(dict.fromkeys(wrong)))
    return found


def _no_split(dataset: Dataset, name: str) -> str:
    there = ", ".join(dataset.splits)
    return f"validation.split: {dataset.path} has no split {name!r}; expected one of {there}"


def _opened(how: Validation, source: DevSource, task: Task, graph: Graph) -> DevTask:
    dataset = source.dataset
    data = TaskData(task, dataset, dataset.split(source.split), graph.readers)
    data.check_lengths(graph.readers)
    decode = dataset.text_tokenizer(task.target).decode if _is_read(how, dataset, task) else None
    return DevTask(data, min(len(data), how.limit or len(data)), decode)


def _is_read(how: Validation, dataset: Dataset, task: Task) -> bool:
    """Whether a task's answers are text, in which words are counted."""
    column = dataset.manifest.modalities.get(task.target)
    return bool(how.generate and task.conditions and not task.beside and column is not None and column.is_text)


def _own(how: Validation, source: DevSource, graph: Graph) -> list[Task]:
    """Each predicting tower's own modality, where the split has it."""
    split, known = source.dataset.split(source.split), source.dataset.manifest.modalities
    names = [name for name, tower in graph.towers.items() if how.retention and tower.predicts and name in known]
    return [Task((), name) for name in names if len(split.having([name]))]


def _metrics(
    tasks: Sequence[DevTask], answered: Sequence[DevTask], own: Sequence[DevTask], graph: Graph
) -> tuple[str, ...]:
    documents = [name for name, tower in graph.towers.items() if tower.predicts]
    targets = [name for each in tasks for name in (each.data.task.targets or documents)]
    losses = [f"{graph.modalities[name].tower}_loss" for name in targets]
    errors = [f"{each.data.task.target}_wer" for each in answered]
    retention = [f"{each.data.task.target}_retention" for each in own]
    return tuple(dict.fromkeys(["loss", *losses, *errors, *retention]))
