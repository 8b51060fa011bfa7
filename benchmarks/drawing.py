"""Panels of lines on logarithmic axes, as an SVG file that is the same for the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from zippkit.batch.mask_picture import COLOURS

INK = "#22303a"
MARKS = "os^Dvx"


class Line(NamedTuple):
    """Measured where it is drawn through, predicted where it is dashed."""

    name: str
    points: Sequence[tuple[float, float]]
    predicted: bool = False
    colour: int | None = None
    """Which of the colours; the line's place if left out."""


class Panel(NamedTuple):
    title: str
    x: str
    lines: Sequence[Line]


def draw(panels: Sequence[Panel], file: Path) -> None:
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, line in enumerate(panel.lines):
            colour = COLOURS[(i if line.colour is None else line.colour) % len(COLOURS)]
            style = {"linestyle": "--", "linewidth": 1} if line.predicted else {"marker": MARKS[i % len(MARKS)]}
            axes.plot(*zip(*line.points, strict=True), label=line.name, color=colour, markersize=4, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(panel.title, fontsize=9, color=INK)
        axes.set_xlabel(panel.x, fontsize=8, color=INK)
        axes.set_xticks(sorted({x for line in panel.lines for x, _ in line.points}))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axes.tick_params(labelsize=7, colors=INK)
        for label in axes.get_xticklabels():
            label.set_rotation(45)
        axes.grid(color=INK, alpha=0.12, linewidth=0.8)
        axes.spines[:].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "zippkit", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
