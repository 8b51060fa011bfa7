"""A panel of training losses for each phase of a run, and of what was measured on the dev split meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from zippkit.training.metrics import read_metrics


class Legend(NamedTuple):
    """A tower's colour, and its first and last loss in a phase, in nats per token."""

    tower: str
    colour: str
    first: float
    last: float


class Panel(NamedTuple):
    """One phase: its name, a legend of the towers that have a loss, and the picture."""

    phase: str
    legend: list[Legend]
    picture: Markup


def loss_panels(run: Path, towers: Sequence[str]) -> list[Panel]:
    """Draw what ``metrics.jsonl`` holds; empty where there are no metrics."""
    phases: dict[str, list[dict[str, Any]]] = {}
    for line in read_metrics(run):
        phases.setdefault(line["phase"], []).append(line)
    panels: list[Panel] = []
    for phase, told in phases.items():
        name = phase.replace("pretrain.", "pre-train ")
        panels += [_panel(name, told, towers), *_dev_panels(name, told, towers)]
    return panels


def _panel(name: str, lines: Sequence[dict[str, Any]], towers: Sequence[str]) -> Panel:
    from zippkit.report.plots import loss_curve, tower_colours

    legend = [
        Legend(tower, colour, losses[0], losses[-1])
        for tower, colour in tower_colours(towers).items()
        if (losses := [line["losses"][tower] for line in lines if tower in line["losses"]])
    ]
    return Panel(name, legend, Markup(loss_curve(lines, towers, name)))


_DEV = {"wer": ("word error rate on dev", "errors per word"), "retention": ("own loss on dev", "nats per token")}
"""What is drawn of each metric that a tower may have on the dev split, besides its loss."""


def _dev_panels(name: str, lines: Sequence[dict[str, Any]], towers: Sequence[str]) -> Iterator[Panel]:
    from zippkit.report.plots import Curve, curve_picture, dev_points, tower_colours

    for metric, (what, unit) in _DEV.items():
        curves = [
            Curve(tower, colour, points)
            for tower, colour in tower_colours(towers).items()
            if (points := dev_points(lines, f"{tower}_{metric}"))
        ]
        if curves:
            legend = [Legend(each.name, each.colour, each.points[0][1], each.points[-1][1]) for each in curves]
            title = f"{name}, {what}"
            yield Panel(title, legend, Markup(curve_picture(curves, unit, title, title)))
