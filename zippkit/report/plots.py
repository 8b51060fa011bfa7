"""Pictures of a report as SVG inside its page: loss curves, and masks. Imports matplotlib, so import it lazily."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zippkit.batch.mask_picture import COLOURS
from zippkit.batch.mask_view import Masks

INK = "#0d0e0f"
"""Stands for the page's own ink, which the reader's light or dark theme decides on."""


def tower_colours(towers: Sequence[str]) -> dict[str, str]:
    """Each tower's colour, the same as in pictures of masks."""
    return {tower: COLOURS[i % len(COLOURS)] for i, tower in enumerate(towers)}


def loss_curve(lines: Sequence[Mapping[str, Any]], towers: Sequence[str], name: str) -> str:
    """One phase's losses over its steps, one line for each tower that has one; dashed, those on the dev split.

    Args:
        lines: the phase's lines of metrics, as `read_metrics` gives them.
        towers: every tower of the composition.
        name: of the picture on its page.
    """
    curves = []
    for tower, colour in tower_colours(towers).items():
        points = [(line["step"], line["losses"][tower]) for line in lines if tower in line["losses"]]
        on_dev = dev_points(lines, f"{tower}_loss")
        curves += [Curve(tower, colour, points), Curve(f"{tower}-dev", colour, on_dev, "--")]
    return curve_picture(curves, "nats per token", name, f"Loss, {name}")


def dev_points(lines: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """(step, value) of every evaluation while training that has a metric."""
    found = [(line["step"], line["validation"]) for line in lines if "validation" in line]
    return [(step, measured[metric]) for step, measured in found if metric in measured]


class Curve(NamedTuple):
    """One line of a picture."""

    name: str
    colour: str
    points: Sequence[tuple[int, float]]
    """(step, value); a curve without points is left out."""
    style: str = "-"


def curve_picture(curves: Sequence[Curve], unit: str, name: str, label: str) -> str:
    """Curves over steps, as SVG for a page.

    Args:
        curves: what to draw.
        unit: of the values.
        name: of the picture on its page.
        label: what it shows, for those who do not see it.
    """
    figure = Figure(figsize=(3.6, 2.4), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        if curve.points or curve.style == "-":
            steps, values = zip(*curve.points, strict=True) if curve.points else ((), ())
            # One point alone makes no line.
            marker = "o" if len(curve.points) == 1 else ""
            axes.plot(
                steps, values, color=curve.colour, linewidth=1.8, linestyle=curve.style, marker=marker, gid=curve.name
            )
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.1 * max((value for curve in curves for _, value in curve.points), default=1))
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel(unit, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(length=0, colors=INK)
    axes.grid(color=INK, alpha=0.12, linewidth=0.8)
    axes.spines[:].set_visible(False)
    written = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "zippkit", "svg.fonttype": "none"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return _inside_page(written.getvalue(), name, label).replace(INK, "currentColor")


def mask_picture(masks: Masks, row: int, name: str) -> str:
    """The masks of one row; ``name`` is the picture's on its page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "masks.svg"
        masks.save(file, row)
        return _inside_page(file.read_text(encoding="utf-8"), name, f"Masks of row {row}")


def _inside_page(svg: str, name: str, label: str) -> str:
    """Make an SVG file an element of a page: its ids its own, and without style sheets, which reach the whole page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>| role=\"img\"", "", svg, flags=re.DOTALL)
    own = re.sub(r"\W+", "-", name)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{own}-", svg)
    return svg.replace("<svg ", f'<svg class="plot" role="img" aria-label={quoteattr(label)} ', 1)
