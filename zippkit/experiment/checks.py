"""Errors of an experiment: names that are not there, values said twice, and what no recipe measures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from zippkit.errors import did_you_mean
from zippkit.experiment.claim_checks import claim_complaints, unknown
from zippkit.experiment.format import Experiment, Plot, Preset
from zippkit.experiment.metrics import Metric
from zippkit.spec.recipe import Recipe
from zippkit.spec.validation import Complaint
from zippkit.spec.words import Name
from zippkit.spec.yaml_document import KeyPath


def complaints_of(experiment: Experiment) -> Iterator[Complaint]:
    """Mistakes that can be told without the recipes."""
    metrics = experiment.metrics
    for name, metric in metrics.items():
        for place, message in metric.complaints(metrics):
            yield ("metrics", name, *place), message
    yield from unknown(("table", "columns"), experiment.table.columns, metrics, "metric")
    yield from unknown(("table", "best"), [experiment.table.best] if experiment.table.best else [], metrics, "metric")
    for name, cell in experiment.cells.items():
        yield from unknown(("cells", name, "paper"), list(cell.paper), metrics, "metric")
    for i, plot in enumerate(experiment.plots):
        for place, message in _plot_complaints(experiment, plot):
            yield ("plots", i, *place), message
    for i, claim in enumerate(experiment.claims):
        for place, message in claim_complaints(experiment, claim):
            yield ("claims", i, *place), message
    yield from _repeated(("seeds",), experiment.seeds)
    if experiment.axis is None and experiment.table.best:
        yield ("table", "best"), "the experiment has no axis"
    elif experiment.axis is not None:
        yield from _repeated(("axis", "values"), experiment.axis.values)
    for name, preset in experiment.presets.items():
        for place, message in _preset_complaints(experiment, preset):
            yield ("presets", name, *place), message


def _plot_complaints(experiment: Experiment, plot: Plot) -> Iterator[Complaint]:
    yield from unknown(("metrics",), plot.metrics, experiment.metrics, "metric")
    yield from unknown(("cells",), plot.cells or [], experiment.cells, "cell")
    if plot.x == "axis" and experiment.axis is None:
        yield ("x",), "the experiment has no axis"
    known = [experiment.metrics[name] for name in plot.metrics if name in experiment.metrics]
    if len({metric.percent for metric in known}) > 1:
        yield ("metrics",), "word error rates and losses (nats per token) have no common axis; make two plots of them"


def _preset_complaints(experiment: Experiment, preset: Preset) -> Iterator[Complaint]:
    yield from unknown(("cells",), list(preset.cells), experiment.cells, "cell")
    yield from _repeated(("seeds",), preset.seeds or [])
    yield from _repeated(("values",), preset.values or [])
    if preset.values and experiment.axis is None:
        yield ("values",), "the experiment has no axis that could take them"


def _repeated(place: KeyPath, values: Sequence[float]) -> Iterator[Complaint]:
    for i, value in enumerate(values):
        if value in values[:i]:
            yield (*place, i), f"{value:g} is there twice; the same run would count as two"


def grid_complaints(
    experiment: Experiment, name: str | None, preset: Preset, recipes: Iterable[Recipe]
) -> Iterator[Complaint]:
    """Metrics that one preset's recipes do not measure: tasks, towers and splits that none of them has."""
    recipes = list(recipes)
    named = {split for metric in experiment.metrics.values() for split in metric.splits(experiment.metrics)}
    splits = dict.fromkeys(sorted(named))
    for split in preset.splits:
        yield from unknown(("presets", name or "", "splits", split), [split], splits, "split of a metric")
    tasks = dict.fromkeys(str(task) for recipe in recipes for task in recipe.scored_tasks())
    given = [each for recipe in recipes for each in recipe.spec.towers.items()]
    towers = dict.fromkeys(tower for tower, its in given if its.settings.predicts)
    for key, metric in experiment.metrics.items():
        for field, message in _not_measured(metric, tasks, towers):
            yield ("metrics", key, field), message


def _not_measured(metric: Metric, tasks: Mapping[str, Any], towers: Mapping[Name, Any]) -> Iterator[tuple[str, str]]:
    if metric.named_task is not None and metric.named_task not in tasks:
        yield "task", f"no recipe is evaluated on {metric.named_task!r}{did_you_mean(metric.named_task, tasks)}"
    if metric.retention is not None and metric.retention not in towers:
        yield "retention", f"no tower is called {metric.retention!r}{did_you_mean(metric.retention, towers)}"
