"""What an experiment's YAML says: a base recipe, a grid over it, what is measured, and what is claimed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from zippkit.config import Strict
from zippkit.errors import Problem, SpecError, did_you_mean
from zippkit.experiment.metrics import Metric
from zippkit.experiment.statistics import Relation
from zippkit.spec import Name
from zippkit.validation import Complaint, validate
from zippkit.yaml_file import Document, Place, read_yaml

Value = int | float
Overrides = dict[str, Any]
"""``key.path: value`` for the recipe; ``spec.`` reaches into its spec."""
Seed = Annotated[int, Field(ge=0)]


class Cell(Strict):
    """One system: what it changes in the recipe."""

    label: str = Field(description="Its name in tables and plots.")
    spec: str | None = Field(None, description="Another spec file than the recipe's, found beside the experiment.")
    set: Overrides = Field(default_factory=dict, description="Other overrides, `key.path: value`.")
    drop: list[str] = Field(
        default_factory=list, description="Keys of the base recipe that this cell goes without: `pretrain.speech`."
    )
    paper: dict[Name, str] = Field(default_factory=dict, description="The paper's number for a metric, in its words.")


class Axis(Strict):
    """A key of the recipe that every cell is run with several values of."""

    key: str = Field(description="Such as `train.fraction`.")
    label: str = Field(description="Its name in tables and plots.")
    values: list[Value] = Field(min_length=1)
    scale: Literal["linear", "log"] = Field("linear", description="Of plots over it.")
    percent: bool = Field(False, description="Whether its values are shown as percentages.")


class Preset(Strict):
    """Another size of the same experiment."""

    set: Overrides = Field(default_factory=dict, description="Overrides for every cell.")
    cells: dict[Name, Overrides] = Field(default_factory=dict, description="Overrides for single cells, the last word.")
    seeds: list[Seed] | None = Field(None, min_length=1, description="Instead of the experiment's.")
    values: list[Value] | None = Field(None, min_length=1, description="Instead of the axis's.")
    splits: dict[Name, Name] = Field(default_factory=dict, description="Splits that are called otherwise in its data.")
    note: str = Field("", description="What a reader of the page must know, such as that its numbers mean nothing.")


class Table(Strict):
    """A row for each cell, or for each cell and value of the axis."""

    columns: list[Name] = Field(min_length=1, description="Metrics.")
    best: Name | None = Field(None, description="The metric by which each cell's best value of the axis is marked.")


class Plot(Strict):
    """One picture."""

    title: str
    x: Literal["axis", "metrics", "cells"] = Field(
        description="`axis`: a line for each cell and metric; `metrics`: from metric to metric; `cells`: bars."
    )
    metrics: list[Name] = Field(min_length=1)
    cells: list[Name] | None = Field(None, description="Those that are shown; all if left out.")
    label: str = Field("", description="What the x axis is called where it is not `axis`.")


class Claim(Strict):
    """A sentence of the paper as a comparison of two groups of cells."""

    text: str
    paper: str = Field(description="The paper's numbers for it, and where they stand.")
    metric: Name
    group: list[Name] = Field(min_length=1, description="Cells; their mean is compared, seed by seed.")
    is_: Relation = Field(
        alias="is", description="`near`: by at most `within`; `unchanged`: the metric is 0, by at most `within`."
    )
    than: list[Name] = Field(default_factory=list, description="The other group; `unchanged` has none.")
    at: Value | None = Field(None, description="At this value of the axis.")
    than_metric: Name | None = Field(None, description="The other group's metric, if it is another one.")
    of: Literal["value", "best_at"] = Field(
        "value", description="`best_at`: the value of the axis where the metric is lowest (its log10 on a log scale)."
    )
    within: float = Field(0.0, ge=0, description="A difference that does not matter.")


class Experiment(Strict):
    """One YAML file of the experiments' folder."""

    name: Name
    title: str
    place: int = Field(0, description="On the page: the lowest comes first.")
    about: str = Field("", description="What is asked, and where in the paper it stands.")
    recipe: str | dict[str, Any] = Field(
        description="The base: a recipe, or a path to one; `{preset}` in paths stands for the preset's name."
    )
    set: Overrides = Field(default_factory=dict, description="Overrides for every cell and preset.")
    cells: dict[Name, Cell] = Field(min_length=1)
    axis: Axis | None = None
    seeds: list[Seed] = Field(default=[0], min_length=1)
    presets: dict[Name, Preset] = Field(default_factory=dict)
    metrics: dict[Name, Metric] = Field(min_length=1)
    table: Table
    plots: list[Plot] = Field(default_factory=list)
    claims: list[Claim] = Field(default_factory=list)

    def complaints(self) -> Iterator[Complaint]:
        """Names of cells, metrics and values that are not there, and claims that say too little."""
        for name, metric in self.metrics.items():
            for place, message in metric.complaints(self.metrics):
                yield ("metrics", name, *place), message
        yield from _unknown(("table", "columns"), self.table.columns, self.metrics, "metric")
        for name, cell in self.cells.items():
            yield from _unknown(("cells", name, "paper"), list(cell.paper), self.metrics, "metric")
        for i, plot in enumerate(self.plots):
            yield from _unknown(("plots", i, "metrics"), plot.metrics, self.metrics, "metric")
            yield from _unknown(("plots", i, "cells"), plot.cells or [], self.cells, "cell")
        for i, claim in enumerate(self.claims):
            for place, message in self._claim_complaints(claim):
                yield ("claims", i, *place), message
        for name, preset in self.presets.items():
            yield from _unknown(("presets", name, "cells"), list(preset.cells), self.cells, "cell")
            if preset.values and self.axis is None:
                yield ("presets", name, "values"), "the experiment has no axis that could take them"
        if self.axis is None:
            needs: list[Place] = [("plots", i, "x") for i, plot in enumerate(self.plots) if plot.x == "axis"]
            needs += [("table", "best")] if self.table.best else []
            yield from ((place, "the experiment has no axis") for place in needs)
        elif self.table.best:
            yield from _unknown(("table",), [self.table.best], self.metrics, "metric")

    def _claim_complaints(self, claim: Claim) -> Iterator[Complaint]:
        named = [name for name in (claim.metric, claim.than_metric) if name]
        yield from _unknown(("metric",), named, self.metrics, "metric")
        yield from _unknown(("group",), claim.group, self.cells, "cell")
        yield from _unknown(("than",), claim.than, self.cells, "cell")
        if (claim.is_ == "unchanged") == bool(claim.than):
            yield ("than",), "unchanged compares with 0; remove it" if claim.than else f"what is it {claim.is_}?"
        if claim.is_ == "near" and not claim.within:
            yield ("within",), "near needs `within`, the difference that does not matter"
        if self.axis is None and (claim.at is not None or claim.of == "best_at"):
            yield ("at" if claim.at is not None else "of",), "the experiment has no axis"
        if self.axis is not None and (claim.at is None) == (claim.of == "value"):
            yield ("at",), "with an axis, a claim is `at` one of its values, or `of: best_at`"


def _unknown(place: tuple[str | int, ...], names: list[Name], known: dict[Name, Any], what: str) -> Iterator[Complaint]:
    return ((place, f"no {what} is called {name!r}{did_you_mean(name, known)}") for name in names if name not in known)


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment, and where each of its values stands."""

    document: Document
    experiment: Experiment


def load_experiment(path: Path) -> ExperimentFile:
    """Read and check one experiment; its recipes are checked when its grid is laid out.

    Raises:
        SpecError: every problem found, with file, line and key.
    """
    document = read_yaml(path)
    experiment, complaints = validate(Experiment, document.data)
    if experiment is not None:
        complaints = list(experiment.complaints())
    if experiment is None or complaints:
        raise SpecError([document.problem(place, message) for place, message in complaints])
    return ExperimentFile(document, experiment)


def load_experiments(folder: Path, only: list[str] | None = None) -> list[ExperimentFile]:
    """Every experiment of a folder, or those of the files named in ``only``, by name of the file.

    Raises:
        SpecError: every problem of every file.
    """
    files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if not files:
        raise SpecError([Document(str(folder), None).problem((), "no experiment is there (*.yaml)")])
    for name in only or []:
        if name not in files:
            message = f"no experiment is called {name!r}{did_you_mean(name, files)}"
            raise SpecError([Document(str(folder), None).problem((), message)])
    loaded: list[ExperimentFile] = []
    problems: list[Problem] = []
    for name, file in files.items():
        if only is None or name in only:
            try:
                loaded.append(load_experiment(file))
            except SpecError as error:
                problems += error.problems
    if problems:
        raise SpecError(problems)
    return sorted(loaded, key=lambda file: file.experiment.place)
