"""All data of a run: its datasets, and what every phase learns from them, checked before anything is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from zippkit.data.dataset import Dataset
from zippkit.errors import DataError
from zippkit.plan.graph import Graph, build_graph
from zippkit.spec.data_section import SINGLE, DataSource, Use
from zippkit.spec.phase import Phase
from zippkit.spec.recipe import Recipe
from zippkit.spec.task import Task
from zippkit.spec.task_line import WeightedTask
from zippkit.training.data_checks import check_agreement, check_tokenizers
from zippkit.training.dev_data import DevSource
from zippkit.training.mixture import Mixture, mix
from zippkit.training.task_data import TaskData, holds, places


def open_datasets(recipe: Recipe) -> dict[str, Dataset]:
    """Every dataset of a recipe by its name.

    Raises:
        DataError: all that are not there, are damaged, or do not go together.
    """
    found: dict[str, Dataset] = {}
    wrong: list[str] = []
    for name, source in recipe.sources.items():
        try:
            found[name] = Dataset.open(source.path)
        except DataError as error:
            wrong.append(str(error))
    try:
        check_agreement(found, recipe.spec.modalities)
    except DataError as error:
        wrong.append(str(error))
    if wrong:
        raise DataError("\n".join(dict.fromkeys(wrong)))
    return found


def mixtures(recipe: Recipe, datasets: Mapping[str, Dataset]) -> dict[str, Mixture]:
    """What every phase learns from, by the phase's label.

    Raises:
        DataError: data that the towers cannot read, and tasks that no dataset serves; tells of every phase.
    """
    work = _Work(recipe, datasets, build_graph(recipe.spec))
    phases = {f"pretrain.{name}": (phase, recipe.pretrain_uses(name)) for name, phase in recipe.pretrain.items()}
    phases |= {each.label: (each.phase, recipe.uses(each.phase)) for each in recipe.main_phases}
    served = {label: work.serving(label, *given) for label, given in phases.items()}
    work.check_tokenizers([use for uses in served.values() for use in uses])
    parts = {label: work.parts(uses) for label, uses in served.items()}
    found: dict[str, Mixture] = {}
    for label, (phase, _) in phases.items():
        if parts[label]:
            try:
                whole = mix(parts[label], recipe.sources, recipe.temperature, label)
                found[label] = Mixture([p.part(phase.fraction, recipe.seed) for p in whole.parts], whole.shares)
            except DataError as error:
                work.wrong.append(str(error))
    if work.wrong:
        raise DataError("\n".join(dict.fromkeys(work.wrong)))
    return found


@dataclass
class _Work:
    """Looks for the data of tasks, each once, and collects what is wrong."""

    recipe: Recipe
    datasets: Mapping[str, Dataset]
    graph: Graph
    wrong: list[str] = field(default_factory=list)
    known: dict[tuple[str, Task, frozenset[str] | None], TaskData | None] = field(default_factory=dict)

    def serving(self, label: str, phase: Phase, uses: Sequence[Use]) -> list[Use]:
        """Those uses for which the data are there; each task needs one, and each dataset that the phase names."""
        found = [use for use in uses if self._serves(use)]
        for task in dict.fromkeys(use.line.parsed for use in uses):
            if not any(use.line.parsed == task for use in found):
                self.wrong.append(f"{label}: no dataset serves the task {str(task)!r} ({self._holdings(phase)})")
        for name in phase.datasets or ():
            if not any(use.dataset == name for use in found):
                self.wrong.append(f"{label}: data.{name} serves none of its tasks ({self._holdings(phase)})")
        return found

    def _holdings(self, phase: Phase) -> str:
        chosen = {name: self.datasets[name] for name in self.recipe.chosen(phase)}
        return "; ".join(f"{dataset.path} has {', '.join(dataset.modalities)}" for dataset in chosen.values())

    def _serves(self, use: Use) -> bool:
        """Whether a dataset is to serve a task: told so, or the only one, or it has what the task needs."""
        dataset, source = self.datasets[use.dataset], self.recipe.sources[use.dataset]
        if len(self.datasets) == 1 or source.tasks is not None:
            return True
        task, split = use.line.parsed, source.split or self.recipe.split
        if not holds(dataset, task):
            return False
        return split not in dataset.splits or len(places(task, dataset.split(split))) > 0

    def check_tokenizers(self, uses: Sequence[Use]) -> None:
        for name, dataset in self.datasets.items():
            tasks = [use.line.parsed for use in uses if use.dataset == name]
            try:
                check_tokenizers(dataset, self.graph.modalities, tasks=tasks)
            except DataError as error:
                self.wrong.append(str(error))

    def parts(self, uses: Sequence[Use]) -> list[tuple[Use, TaskData]]:
        """The data of those uses that have no mistakes."""
        if self.wrong:
            return []
        found = [(use, self._part(use)) for use in uses]
        return [(use, part) for use, part in found if part is not None]

    def _part(self, use: Use) -> TaskData | None:
        task, loss = use.line.parsed, _loss(use.line, self.graph)
        key = use.dataset, task, loss
        if key not in self.known:
            self.known[key] = None
            try:
                dataset, source = self.datasets[use.dataset], self.recipe.sources[use.dataset]
                split = dataset.split(source.split or self.recipe.split)
                part = TaskData(task, dataset, split, self.graph.readers, loss)
                part.check_lengths(self.graph.readers)
                self.known[key] = part
            except DataError as error:
                self.wrong.append(str(error))
        return self.known[key]


def _loss(line: WeightedTask, graph: Graph) -> frozenset[str] | None:
    """The modalities that carry a task's loss; None for its targets."""
    if line.loss is not None:
        return frozenset(line.loss)
    if line.mask_prompt:
        return None
    if line.parsed.interleaved:
        return None
    return frozenset(name for name in line.parsed.modalities if graph.readers[name].predicts)


class ScoredDataset(NamedTuple):
    """A dataset and the tasks that are scored on it."""

    label: str
    """``{}`` stands for the split; with the dataset's name before it where there are several."""
    dataset: Dataset
    tasks: list[Task]


def scored_datasets(recipe: Recipe, data: Path | None = None) -> list[ScoredDataset]:
    """The datasets on which a run is scored, each with its tasks, the first that reports show first.

    Args:
        recipe: the run's.
        data: another dataset folder, instead.

    Raises:
        DataError: they are not there, or have none of the scored tasks.
    """
    tasks, wanted = recipe.scored_tasks(), recipe.evaluate.datasets
    if data is not None or isinstance(recipe.data, Path):
        return [ScoredDataset("{}", Dataset.open(data or recipe.sources[SINGLE].path), tasks)]
    found = []
    for name, source in recipe.sources.items():
        if wanted is None or name in wanted:
            dataset = Dataset.open(source.path)
            own = (
                None if wanted or source.lines is None else [t for line in source.lines for t in line.parsed.beginnings]
            )
            here = [t for t in tasks if set(t.modalities) <= set(dataset.modalities) and (own is None or t in own)]
            if here:
                found.append(ScoredDataset(name + "/{}", dataset, here))
    if not found:
        told = ", ".join(map(str, tasks))
        raise DataError(f"no dataset of the recipe has what the scored tasks need ({told}); name it as `evaluate.data`")
    return found


def _those_of(dataset: Dataset, source: DataSource | None, tasks: Sequence[Task]) -> list[Task]:
    """The tasks whose modalities a dataset has, of those that its section names, if it does."""
    lines = source.lines if source else None
    own = None if lines is None else [each for line in lines for each in line.parsed.beginnings]
    return [task for task in tasks if holds(dataset, task) and (own is None or task in own)]


def dev_sources(recipe: Recipe, datasets: Mapping[str, Dataset]) -> list[DevSource]:
    """The datasets on which a run is evaluated while it trains, each with its split and its tasks."""
    if recipe.validation is None:
        return []
    tasks = recipe.validation.parsed(recipe.tasks())
    found: list[DevSource] = []
    for name, dataset in datasets.items():
        section = recipe.sources[name]
        here = tasks if len(datasets) == 1 else _those_of(dataset, section, tasks)
        if here:
            found.append(DevSource(dataset, section.dev or recipe.validation.split, here))
    # One that has no such split is left out, unless it was named for it, or none has: then it is told.
    named = {id(datasets[name]) for name, section in recipe.sources.items() if section.dev is not None}
    return [each for each in found if each.split in each.dataset.splits or id(each.dataset) in named] or found


def shown_dataset(recipe: Recipe, task: Task) -> Dataset:
    """The dataset that a task is shown with: the first that serves it.

    Raises:
        DataError: there is none, or it cannot be opened.
    """
    opened = ((source, Dataset.open(source.path)) for source in recipe.sources.values())
    found = next((dataset for source, dataset in opened if _those_of(dataset, source, [task])), None)
    if found is None:
        raise DataError(f"no dataset of the recipe serves the task {str(task)!r}")
    return found
