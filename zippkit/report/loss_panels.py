"""A panel of training losses for each phase of a run."""

from __future__ import annotations

from collections.abc import Sequence
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
    return [_panel(phase.replace("pretrain.", "pre-train "), lines, towers) for phase, lines in phases.items()]


def _panel(name: str, lines: Sequence[dict[str, Any]], towers: Sequence[str]) -> Panel:
    from zippkit.report.plots import loss_curve, tower_colours

    legend = [
        Legend(tower, colour, losses[0], losses[-1])
        for tower, colour in tower_colours(towers).items()
        if (losses := [line["losses"][tower] for line in lines if tower in line["losses"]])
    ]
    return Panel(name, legend, Markup(loss_curve(lines, towers, name)))
