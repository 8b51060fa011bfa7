"""An experiment laid out: a checked recipe for every cell, value of the axis and seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zippkit.errors import Problem, SpecError, did_you_mean
from zippkit.experiment.checks import grid_complaints
from zippkit.experiment.format import Experiment, Overrides, Preset, Value
from zippkit.experiment.hashes import recipe_hash
from zippkit.experiment.loading import ExperimentFile, load_experiment
from zippkit.loading import recipe_of
from zippkit.spec.inheritance import read_yaml
from zippkit.spec.phase import Phase
from zippkit.spec.recipe import Recipe
from zippkit.spec.yaml_document import Document, KeyPath, beside, dotted

P = TypeVar("P", bound=Phase)


@dataclass(frozen=True)
class Job:
    """One run of the grid."""

    experiment: str
    cell: str
    value: Value | None
    """Of the axis."""
    seed: int
    recipe: Recipe
    splits: tuple[str, ...]
    """Splits to be evaluated, by their names in the data."""
    key: str
    """The recipe's hash: jobs with equal keys are one run."""

    def __str__(self) -> str:
        at = "" if self.value is None else f" at {self.value:g}"
        return f"{self.experiment}: {self.cell}{at}, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """An experiment and its runs under one preset."""

    experiment: Experiment
    preset: Preset
    jobs: tuple[Job, ...]

    @property
    def values(self) -> list[Value] | list[None]:
        """Values of the axis; a single None where there is no axis."""
        axis = self.experiment.axis
        return [None] if axis is None else self.preset.values or axis.values

    def split(self, name: str) -> str:
        """Return a split's name in this preset's data."""
        return self.preset.splits.get(name, name)


def lay_out(file: ExperimentFile, preset: str | None = None) -> Grid:
    """Resolve and check the recipe of every run.

    Args:
        file: the experiment.
        preset: its name; for an experiment without presets it only stands for ``{preset}`` in paths.

    Raises:
        SpecError: every problem of every cell's recipe; those of overrides are told with the experiment's lines.
    """
    experiment, document = file.experiment, file.document
    if experiment.presets and preset not in experiment.presets:
        message = f"no preset is called {preset!r}{did_you_mean(preset, experiment.presets)}"
        raise SpecError([document.problem(("presets",), message)])
    grid = Grid(experiment, experiment.presets.get(preset or "", Preset()), ())
    named = {grid.split(split) for metric in experiment.metrics.values() for split in metric.splits(experiment.metrics)}
    jobs: list[Job] = []
    problems: list[Problem] = []
    for cell in experiment.cells:
        for value in grid.values:
            try:
                recipe = _resolve(file, grid.preset, preset or "", cell, value)
            except SpecError as error:
                problems += [problem for problem in error.problems if problem not in problems]
                continue
            for seed in grid.preset.seeds or experiment.seeds:
                seeded = recipe.model_copy(update={"seed": seed})
                jobs.append(Job(experiment.name, cell, value, seed, seeded, tuple(sorted(named)), recipe_hash(seeded)))
    if not problems:
        found = grid_complaints(experiment, preset, grid.preset, (job.recipe for job in jobs))
        problems += [document.problem(place, message) for place, message in found]
    if problems:
        raise SpecError(problems)
    return Grid(experiment, grid.preset, tuple(jobs))


def check_experiment(path: Path) -> str:
    """The name of a sound experiment: every recipe of every preset is laid out.

    Raises:
        SpecError: every problem, with file, line and key.
    """
    file = load_experiment(path)
    problems: list[Problem] = []
    for preset in file.experiment.presets or [None]:
        try:
            lay_out(file, preset)
        except SpecError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise SpecError(problems)
    return file.experiment.name


def _settings(
    file: ExperimentFile, preset: Preset, name: str, cell: str, value: Value | None
) -> Iterator[tuple[KeyPath, str, Any]]:
    """Overrides in the order in which they act: where they stand, their key, their value."""
    experiment = file.experiment
    spec = experiment.cells[cell].spec
    if spec is not None:
        yield ("cells", cell, "spec"), "spec", beside(spec.replace("{preset}", name), file.document.file)
    sources: list[tuple[KeyPath, Overrides]] = [
        (("set",), experiment.set),
        (("presets", name, "set"), preset.set),
        (("cells", cell, "set"), experiment.cells[cell].set),
        (("presets", name, "cells", cell), preset.cells.get(cell, {})),
    ]
    for place, overrides in sources:
        for key, setting in overrides.items():
            yield (*place, key), key, setting
    if experiment.axis is not None and value is not None:
        place = ("presets", name, "values") if preset.values else ("axis", "key")
        yield place, experiment.axis.key, value


def _resolve(file: ExperimentFile, preset: Preset, name: str, cell: str, value: Value | None) -> Recipe:
    settings = list(_settings(file, preset, name, cell, value))
    base = file.experiment.recipe
    _need(file, ("recipe",), base if isinstance(base, str) else None, name)
    _need(file, ("cells", cell, "spec"), file.experiment.cells[cell].spec, name)
    if isinstance(base, str):
        document = read_yaml(beside(base.replace("{preset}", name), file.document.file))
    else:
        lines = {place[1:]: line for place, line in file.document.lines.items() if place[:1] == ("recipe",)}
        document = Document(file.document.file, deepcopy(base), lines)
    _drop(document, file, cell)
    # The run's name is the same in every experiment, so that equal recipes are one run.
    document.data.setdefault("name", "run")
    try:
        recipe = recipe_of(document, [f"{key}={json.dumps(setting)}" for _, key, setting in settings])
    except SpecError as error:
        raise SpecError([_told(problem, file, cell, settings) for problem in error.problems]) from None
    return _plain(recipe.model_copy(update={"name": recipe.spec.name}))


def _need(file: ExperimentFile, place: KeyPath, named: str | None, preset: str) -> None:
    """A file that the experiment names must be there; the experiment's own line is where that is put right."""
    if named is None:
        return
    path = beside(named.replace("{preset}", preset), file.document.file)
    if not Path(path).is_file():
        raise SpecError([file.document.problem(place, f"{path} is not there; expected a file, beside this one")])


def _drop(document: Document, file: ExperimentFile, cell: str) -> None:
    """Take keys out of the base recipe that a cell goes without."""
    for i, key in enumerate(file.experiment.cells[cell].drop):
        *path, last = key.split(".")
        parent = document.data
        for part in path:
            parent = parent.get(part) if isinstance(parent, dict) else None
        if not isinstance(parent, dict) or last not in parent:
            known = did_you_mean(last, parent) if isinstance(parent, dict) else ""
            message = f"the base recipe has no key {key!r}{known}"
            raise SpecError([file.document.problem(("cells", cell, "drop", i), message)])
        del parent[last]


def _told(problem: Problem, file: ExperimentFile, cell: str, settings: list[tuple[KeyPath, str, Any]]) -> Problem:
    """A recipe's problem, told where an override of the experiment caused it."""
    for place, key, _ in reversed(settings) if problem.line == 0 else ():
        # The problems of a spec file's own overrides are told without the recipe's `spec.`.
        if any(_touches(problem.key, name) for name in (key, key.removeprefix("spec."))):
            line = file.document.line(place)
            return Problem(file.document.file, line, dotted(place), f"{problem.message} (recipe key {problem.key})")
    return Problem(problem.file, problem.line, problem.key, f"{problem.message} (in cell {cell!r})")


def _touches(problem: str, key: str) -> bool:
    """Whether one key is the other, or lies below it."""
    return f"{problem}.".startswith(f"{key}.") or (problem != "" and f"{key}.".startswith(f"{problem}."))


def _plain(recipe: Recipe) -> Recipe:
    """The same recipe with nothing said twice: a phase's keys that have their default value anyway are left out."""

    def phase(given: P) -> P:
        return type(given).model_validate(given.model_dump(exclude_defaults=True))

    pretrain = {name: phase(given) for name, given in recipe.pretrain.items()}
    train = phase(recipe.train) if isinstance(recipe.train, Phase) else [phase(stage) for stage in recipe.train]
    return recipe.model_copy(update={"train": train, "pretrain": pretrain})
