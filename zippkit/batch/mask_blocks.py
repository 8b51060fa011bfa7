"""Masks of long rows as a picture of blocks: a square for each pair of segments, in the order of the sequence.

A sentence and its sound are hundreds of tokens; what matters is which segment sees which. Written without matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple
from xml.sax.saxutils import escape

import torch
from torch import Tensor

from zippkit.batch.mask_rows import Token, View
from zippkit.plan.diagram.dark import DARK_STYLE
from zippkit.plan.diagram.figure import INK, LINK_COLOURS, LOOKS
from zippkit.plan.diagram.svg import FONT, box, element, number, text, text_width

BLIND = LOOKS["frozen"].panel
CELL, MARGIN, HEAD, LEGEND = 30.0, 20.0, 64.0, 22.0
"""Pixels of a block's side, around the picture, above the blocks, and of a line of the legend."""
HOW = ("each token sees those before it, and itself", "not seen; left out where no link reads")
WORDS = 30
"""Most letters of a segment that are shown."""


class Run(NamedTuple):
    """The tokens of one segment."""

    tower: str
    segment: int
    first: int
    """Index of its first token among the tower's."""
    tokens: tuple[Token, ...]

    @property
    def last(self) -> int:
        return self.first + len(self.tokens)

    @property
    def label(self) -> str:
        """Modality, number of tokens, and how it begins."""
        said = " ".join(token.label for token in self.tokens)
        cut = said if len(said) <= WORDS else said[: WORDS - 1].rstrip() + "…"
        return f"{self.tower}, {len(self.tokens)}: {cut}"


def runs_of(views: Sequence[View]) -> list[Run]:
    """All segments of a row, in the order of the sequence."""
    towers = {view.target: view.queries for view in views} | {view.source: view.keys for view in views}
    runs = []
    for tower, tokens in towers.items():
        first = 0
        for segment, group in groupby(tokens, key=lambda token: token.segment):
            found = tuple(group)
            runs.append(Run(tower, segment, first, found))
            first += len(found)
    return sorted(runs, key=lambda run: run.tokens[0].order)


def seen(part: Tensor) -> str:
    """How much of (T, S) a segment sees of another: ``all``, ``none``, ``causal``, or how many pairs."""
    if part.all():
        return "all"
    if not part.any():
        return "none"
    square = part.shape[0] == part.shape[1]
    if square and torch.equal(part, torch.ones_like(part).tril()):
        return "causal"
    return f"{int(part.sum())} of {part.numel()} pairs"


def block_picture(views: Sequence[View], towers: Sequence[str], name: str = "masks") -> str:
    """SVG of one row's masks: targets down, sources across.

    Args:
        views: the row's masks.
        towers: every tower of the batch, so that each keeps its colour from row to row.
        name: of the picture.
    """
    runs = runs_of(views)
    masks = {(view.target, view.source): view.dense for view in views}
    left = MARGIN + max(text_width(run.label, 11) for run in runs) + 12
    colours = {tower: LINK_COLOURS[i % len(LINK_COLOURS)] for i, tower in enumerate(towers)}
    used = [tower for tower in towers if any(run.tower == tower for run in runs)]
    below = MARGIN + HEAD + CELL * len(runs) + 14
    legend = [
        *(f"{tower} is seen" for tower in used),
        "each token sees those before it, and itself",
        "not seen; left out where no link reads",
    ]
    wide = max(left + CELL * len(runs), MARGIN + 30 + max(text_width(words, 11) for words in legend)) + MARGIN
    size = number(wide), number(below + LEGEND * len(legend) + MARGIN / 2)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" font-family="{FONT}" fill="{INK}" role="img" '
        f'style="max-width:100%;height:auto">',
        element("title", escape(f"{name}: which of {len(runs)} segments sees which")),
        DARK_STYLE,
        element("rect", width="100%", height="100%", fill="#ffffff"),
    ]
    for i, run in enumerate(runs):
        lines += _axes(run, i, left, colours[run.tower])
        lines += _row(runs, run, i, left, masks, colours)
    lines += _legend([colours[tower] for tower in used], below, legend)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _axes(run: Run, i: int, left: float, colour: str) -> Iterator[str]:
    at = CELL * (i + 0.5)
    yield text(left - 8, MARGIN + HEAD + at, run.label, 11, text_anchor="end", fill=colour)
    x, y = number(left + at), number(MARGIN + HEAD - 8)
    words = escape(f"{run.tower}, {len(run.tokens)}")
    yield element("text", words, x=x, y=y, font_size=10, fill=colour, transform=f"rotate(-50 {x} {y})")


def _row(
    runs: Sequence[Run],
    target: Run,
    i: int,
    left: float,
    masks: dict[tuple[str, str], Tensor],
    colours: dict[str, str],
) -> Iterator[str]:
    for j, source in enumerate(runs):
        mask = masks.get((target.tower, source.tower))
        if mask is None:
            continue
        part = mask[target.first : target.last, source.first : source.last]
        x, y = left + CELL * (j + 0.5), MARGIN + HEAD + CELL * (i + 0.5)
        tip = f"{target.tower}, segment {target.segment}, sees {source.tower}, segment {source.segment}: {seen(part)}"
        yield _block(x, y, seen(part), colours[source.tower], tip)


def _block(x: float, y: float, how: str, colour: str, tip: str = "") -> str:
    """One pair of segments, by its centre."""
    side = CELL - 3
    if how in ("all", "none"):
        return box(x, y, side, side, radius=3, tip=tip, fill=colour if how == "all" else BLIND)
    low, high = (x - side / 2, y - side / 2), (x + side / 2, y + side / 2)
    corner = f"M{number(low[0])} {number(low[1])}V{number(high[1])}H{number(high[0])}Z"
    title = element("title", escape(tip)) if tip else ""
    ground = box(x, y, side, side, radius=3, tip=tip, fill=BLIND)
    return ground + element("path", title, d=corner, fill=colour, fill_opacity=1 if how == "causal" else 0.55)


def _legend(colours: Sequence[str], top: float, words: Sequence[str]) -> Iterator[str]:
    signs = [*(("all", colour) for colour in colours), ("causal", LINK_COLOURS[-1]), ("none", LINK_COLOURS[-1])]
    for i, ((how, colour), said) in enumerate(zip(signs, words, strict=True)):
        y = top + LEGEND * (i + 0.5)
        yield element(
            "g", _block(0, 0, how, colour), transform=f"translate({number(MARGIN + 8)} {number(y)}) scale(.5)"
        )
        yield text(MARGIN + 26, y, said, 11)
