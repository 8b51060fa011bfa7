"""Format of an experiment's YAML: a base recipe, a grid over it, what is measured, and what is claimed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from zippkit.experiment.metrics import Metric
from zippkit.experiment.statistics import Relation
from zippkit.spec.kinds import Strict
from zippkit.spec.words import Name

Value = int | float
Overrides = dict[str, Any]
"""``key.path: value`` for the recipe; ``spec.`` reaches into its spec."""
Seed = Annotated[int, Field(ge=0)]


def _path_or_recipe(given: Any) -> Any:
    """One message for a value that is neither, instead of one for each."""
    if not isinstance(given, (str, dict)):
        raise ValueError("expected a path to a recipe, or the recipe itself")
    return given


Base = Annotated[str | dict[str, Any], BeforeValidator(_path_or_recipe)]


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
    group: list[Name] = Field(
        min_length=1, description="Cells; their mean is compared, seed by seed. `unchanged` must hold for each of them."
    )
    is_: Relation = Field(
        alias="is", description="`near`: by at most `within`; `unchanged`: the metric is 0, by at most `within`."
    )
    than: list[Name] = Field(default_factory=list, description="The other group; `unchanged` has none.")
    than_value: float | None = Field(None, description="Instead of `than`, a number: 0.5 is a word error rate of 50 %.")
    at: Value | None = Field(None, description="At this value of the axis.")
    than_metric: Name | None = Field(None, description="The other group's metric, if it is another one.")
    of: Literal["value", "best_at"] = Field(
        "value", description="`best_at`: the value of the axis where the metric is lowest (its log10 on a log scale)."
    )
    within: float = Field(0.0, ge=0, description="A difference that does not matter.")
    by: float = Field(
        0.0, ge=0, description="`below` or `above` by at least this part of the other's value; 0.25 is a quarter less."
    )


class Experiment(Strict):
    """One YAML file of the experiments' folder."""

    name: Name
    title: str
    place: int = Field(0, description="On the page: the lowest comes first.")
    about: str = Field("", description="What is asked, and where in the paper it stands.")
    page_title: str | None = Field(
        None, description="Of the page of the whole folder, whose name it bears where no experiment says otherwise."
    )
    recipe: Base = Field(
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
