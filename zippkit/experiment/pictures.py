"""Plots of an experiment as SVG. Imports matplotlib, so import it lazily."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterator, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zippkit.batch.mask_picture import COLOURS
from zippkit.experiment.format import Plot
from zippkit.experiment.results import At, Results
from zippkit.experiment.tables import shown_value

MARKERS = "osD^vPX"


def picture(results: Results, plot: Plot) -> str:
    """Draw a plot as an SVG file; one without numbers says so."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    metrics = results.grid.experiment.metrics
    draw = {"axis": _over_axis, "metrics": _over_metrics, "cells": _bars}[plot.x]
    if not draw(axes, results, plot):
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
    first = metrics[plot.metrics[0]]
    axes.set_ylabel("word error rate, %" if first.percent else "change of loss, nats per token")
    axes.set_xlabel(plot.label)
    if plot.x == "axis" and (axis := results.grid.experiment.axis):
        axes.set_xlabel(axis.label)
    if first.percent:
        axes.set_ylim(bottom=0)
    # Lines from one bar's name upwards would say nothing.
    axes.grid(alpha=0.15, axis="y" if plot.x == "cells" else "both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    written = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "zippkit", "svg.fonttype": "none"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def _cells(results: Results, plot: Plot) -> Iterator[tuple[int, str, str]]:
    """Number, name and label of what is shown; a cell's number, and so its colour, is the same in every plot."""
    for i, (name, cell) in enumerate(results.grid.experiment.cells.items()):
        if plot.cells is None or name in plot.cells:
            yield i, name, cell.label


def _over_axis(axes: Axes, results: Results, plot: Plot) -> bool:
    axis = results.grid.experiment.axis
    assert axis is not None
    values = [at for at in results.grid.values if at is not None]
    lines = []
    for i, cell, label in _cells(results, plot):
        for k, metric in enumerate(plot.metrics):
            named = results.grid.experiment.metrics[metric].label
            told = f"{label}, {named}" if len(plot.metrics) > 1 else label
            lines.append(_line(axes, results, [(at, metric, cell, at) for at in values], told, i, k))
    axes.set_xscale(axis.scale)
    axes.set_xticks(values, [shown_value(results, at) for at in values])
    axes.minorticks_off()
    return any(lines)


def _over_metrics(axes: Axes, results: Results, plot: Plot) -> bool:
    metrics = results.grid.experiment.metrics
    at = results.grid.values[-1]
    lines = []
    for i, cell, label in _cells(results, plot):
        points = [(k, metric, cell, at) for k, metric in enumerate(plot.metrics)]
        lines.append(_line(axes, results, points, label, i))
    axes.set_xticks(range(len(plot.metrics)), [metrics[name].label for name in plot.metrics])
    return any(lines)


def _line(
    axes: Axes, results: Results, points: Sequence[tuple[float, str, str, At]], label: str, i: int, style: int = 0
) -> bool:
    """Means over seeds as a line, every seed as a dot; whether there was anything to draw."""
    known = [(x, found) for x, metric, cell, at in points if (found := _percents(results, metric, cell, at))]
    if not known:
        return False
    colour, dashes = COLOURS[i % len(COLOURS)], ("-", "--", ":", "-.")[style % 4]
    marker = MARKERS[i % len(MARKERS)]
    xs, means = [x for x, _ in known], [statistics.fmean(values) for _, values in known]
    axes.plot(xs, means, color=colour, linestyle=dashes, marker=marker, markersize=5, label=label)
    axes.scatter([x for x, values in known for _ in values], [v for _, values in known for v in values], 8, [colour])
    return True


def _bars(axes: Axes, results: Results, plot: Plot) -> bool:
    metrics, at = results.grid.experiment.metrics, results.grid.values[-1]
    cells = list(_cells(results, plot))
    width = 0.8 / len(plot.metrics)
    drawn = False
    for k, metric in enumerate(plot.metrics):
        found = [
            (x, values) for x, (_, cell, _) in enumerate(cells) if (values := _percents(results, metric, cell, at))
        ]
        places = [x + (k - (len(plot.metrics) - 1) / 2) * width for x, _ in found]
        if not found:
            continue
        drawn = True
        means = [statistics.fmean(values) for _, values in found]
        axes.bar(places, means, 0.9 * width, color=COLOURS[k % len(COLOURS)], label=metrics[metric].label)
        dots = [(x, value) for x, (_, values) in zip(places, found, strict=True) for value in values]
        axes.scatter([x for x, _ in dots], [value for _, value in dots], 8, ["black"], zorder=3)
    axes.set_xticks(range(len(cells)), [label for _, _, label in cells], fontsize=8)
    # A cell that is not measured keeps its place.
    axes.set_xlim(-0.5, len(cells) - 0.5)
    return drawn


def _percents(results: Results, metric: str, cell: str, at: At) -> list[float]:
    factor = 100 if results.grid.experiment.metrics[metric].percent else 1
    return [factor * value for value in results.values(metric, cell, at).values()]
