"""Masks as a picture, through matplotlib: a grid of target towers down and source towers across. Imported lazily."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from zippkit.batch.mask_rows import WIDEST, Token, View

BLIND, INK = "#eeeeea", "#22303a"
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5bb0", "#8a7000", "#56b4e9", "#555555")
CELL, SMALLEST, LEFT, TOP, GAP, RIGHT = 0.3, 1.2, 0.8, 0.85, 1.3, 0.5
"""Inches: a token's side, a picture's shortest side, and the room around the pictures and between them."""


def save_picture(views: Sequence[View], towers: Sequence[str], path: Path) -> None:
    """Draw one row's masks; the same masks give the same bytes.

    Args:
        views: the row's masks.
        towers: every tower of the batch, so that each keeps its colour from row to row.
        path: .svg or .png.
    """
    lengths = {view.source: len(view.keys) for view in views}
    cell = CELL * min(1, WIDEST / max(lengths.values()))
    side = {name: max(SMALLEST, cell * n) for name, n in lengths.items()}
    start = {name: sum(side[other] + GAP for other in list(side)[:i]) for i, name in enumerate(side)}
    inner = sum(side.values()) + GAP * (len(side) - 1)
    width, height = LEFT + inner + RIGHT, TOP + inner + RIGHT
    figure = Figure(figsize=(width, height), dpi=150)
    # Links between the same two towers share one picture: their masks are the same.
    for (target, source), same in groupby(sorted(views, key=_ends), key=_ends):
        bottom = height - TOP - start[target] - side[target]
        place = ((LEFT + start[source]) / width, bottom / height, side[source] / width, side[target] / height)
        colours = [COLOURS[towers.index(name) % len(COLOURS)] for name in (target, source)]
        _draw(figure.add_axes(place), list(same), colours, every_token=cell == CELL)
    with mpl.rc_context({"svg.hashsalt": "zippkit"}), warnings.catch_warnings():
        # A token of a script that no font at hand has is drawn as a box.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _ends(view: View) -> tuple[str, str]:
    return view.target, view.source


def _draw(axes: Axes, views: list[View], colours: list[str], every_token: bool) -> None:
    view = views[0]
    target_colour, source_colour = colours
    axes.pcolormesh(
        view.dense.numpy(),
        cmap=ListedColormap([BLIND, source_colour]),
        vmin=0,
        vmax=1,
        edgecolors="white" if every_token else "none",
        linewidth=1.0 if every_token else 0.0,
        rasterized=not every_token,
    )
    axes.invert_yaxis()
    axes.set_frame_on(False)
    links = ", ".join(v.link for v in views if v.link)
    title = f"{view.target} sees {view.source}\n{links}" if links else view.title
    axes.set_title(title, loc="left", fontsize=9, color=INK, pad=16)
    _label(axes, "x", view.keys, source_colour, every_token)
    _label(axes, "y", view.queries, target_colour, every_token)


def _label(axes: Axes, direction: str, tokens: tuple[Token, ...], colour: str, every_token: bool) -> None:
    """Labels and orders on one side, segments on the other, and a line where a segment starts."""
    across = direction == "x"
    axis = axes.xaxis if across else axes.yaxis
    starts = [i for i, token in enumerate(tokens) if not i or tokens[i - 1].segment != token.segment]
    shown = range(len(tokens)) if every_token else starts
    between = "\n" if across else "  "
    labels = [f"{tokens[i].label}{between}{tokens[i].order}" for i in shown]
    turned = 90 if across and any(len(tokens[i].label) > 3 for i in shown) else 0
    axis.set_ticks([i + 0.5 for i in shown], labels, fontsize=7, color=colour, parse_math=False, rotation=turned)
    axis.set_tick_params(length=0)
    for i in starts[1:]:
        (axes.axvline if across else axes.axhline)(i, color=INK, linewidth=0.8)
    middles = [(start + stop) / 2 for start, stop in pairwise([*starts, len(tokens)])]
    other = axes.secondary_xaxis("top") if across else axes.secondary_yaxis("right")
    names = [f"segment {tokens[i].segment}" for i in starts]
    (other.set_xticks if across else other.set_yticks)(middles, names, fontsize=6.5, color=INK)
    other.tick_params(length=0, rotation=0 if across else 270)
    for spine in other.spines.values():
        spine.set_visible(False)
