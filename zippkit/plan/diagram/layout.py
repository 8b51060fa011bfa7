"""Where the parts of a figure stand: columns side by side, and heights at which arrows run level or rise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from zippkit.plan.diagram.parts import NOT_FOLDED, Part, tap_of, tower_parts
from zippkit.plan.diagram.repeats import Repeats, find_repeats
from zippkit.plan.graph import Graph, LinkSite
from zippkit.spec.composition_spec import CompositionSpec

HEIGHTS = dict.fromkeys(("embedding", "input_projection", "layers", "head"), 24.0) | {
    "site": 20.0,
    "tap": 0.0,
    "crossing": 0.0,
}
"""Pixels; a tap or a crossing is a line."""
GAP = 8.0
"""Pixels between neighbours in a column."""


@dataclass(eq=False)
class Place:
    """A part of a column, or a line that crosses the column on its way to another, and how high it stands."""

    column: int
    kind: str
    part: Part | None = None
    y: float = 0.0
    """Pixels from the embeddings' centre up to this centre."""


@dataclass
class Arrow:
    """A site: from the tap, across the columns between, to the site's box."""

    site: LinkSite
    tap: Place
    box: Place
    crossings: list[Place] = field(default_factory=list)

    @property
    def places(self) -> list[Place]:
        return [self.tap, *self.crossings, self.box]

    @property
    def step(self) -> int:
        """1 where the arrow runs to the right, -1 where it runs to the left."""
        return 1 if self.box.column > self.tap.column else -1


@dataclass
class Layout:
    """Columns in spec order, each from bottom to top, and the arrows between them."""

    columns: list[list[Place]]
    arrows: list[Arrow]

    @property
    def top(self) -> float:
        """Pixels from the embeddings' centre up to the heads'."""
        return max(column[-1].y for column in self.columns)


def lay_out(spec: CompositionSpec, graph: Graph, repeats: Repeats = NOT_FOLDED) -> Layout:
    """Place every part: nothing overlaps, no arrow falls, and boxes without a say stand in the middle of their room."""
    towers = (tower_parts(spec, graph, tower, repeats) for tower in graph.towers)
    columns = [[Place(column, part.kind, part) for part in parts] for column, parts in enumerate(towers)]
    layout = Layout(columns, list(_arrows(columns, graph, repeats)))
    _cross(layout, _stack(layout)[1])
    _settle(layout)
    _lift(layout)
    _settle(layout)
    return layout


def lay_out_folded(spec: CompositionSpec, graph: Graph) -> tuple[Layout, Repeats]:
    """The layout with repeats folded, unless arrows would then wait for each other in a circle."""
    repeats = find_repeats(spec, graph)
    try:
        return lay_out(spec, graph, repeats), repeats
    except _CircleError:
        return lay_out(spec, graph), NOT_FOLDED


def _arrows(columns: list[list[Place]], graph: Graph, repeats: Repeats) -> Iterator[Arrow]:
    parts = {place.part: place for column in columns for place in column if place.part}
    boxes = {part.site: place for part, place in parts.items()}
    for site in graph.sites:
        if site in boxes:
            yield Arrow(site, parts[tap_of(site, repeats)], boxes[site])


def _apart(low: Place, high: Place) -> float:
    """Pixels between the centres of neighbours."""
    return (HEIGHTS[low.kind] + HEIGHTS[high.kind]) / 2 + GAP


class _CircleError(Exception):
    """Places wait for each other in a circle, so that none of them can stand above the others."""


@dataclass
class _Above:
    """Which box must stand above which, and by how many pixels at least; many columns have very many crossings."""

    higher: dict[Place, dict[Place, float]] = field(default_factory=dict)
    n_lower: dict[Place, int] = field(default_factory=dict)

    def add(self, low: Place, high: Place, by: float) -> None:
        over = self.higher.setdefault(low, {})
        self.higher.setdefault(high, {})
        if high not in over:
            self.n_lower[high] = self.n_lower.get(high, 0) + 1
        over[high] = by

    def upwards(self) -> list[Place]:
        """All places, each after those below it: first those that stand on nothing, then what stands on them alone."""
        left = dict(self.n_lower)
        found = [place for place in self.higher if place not in left]
        for place in found:
            for high in self.higher[place]:
                left[high] -= 1
                if not left[high]:
                    found.append(high)
        if len(found) < len(self.higher):
            raise _CircleError
        return found


def _above(layout: Layout) -> _Above:
    above = _Above()
    for column in layout.columns:
        for low, high in pairwise(column):
            above.add(low, high, _apart(low, high))
    for arrow in layout.arrows:
        for low, high in pairwise(arrow.places):
            above.add(low, high, 0.0)
    return above


def _stack(layout: Layout) -> tuple[_Above, list[Place]]:
    """Put everything as low as it can stand; returns all places from bottom to top, too."""
    above = _above(layout)
    upwards = above.upwards()
    for place in upwards:
        place.y = 0.0
    for place in upwards:
        for high, by in above.higher[place].items():
            high.y = max(high.y, place.y + by)
    return above, upwards


def _cross(layout: Layout, upwards: Sequence[Place]) -> None:
    """Give each arrow a line through the columns that it passes, right after its tap; arrows of one tap share it."""
    # Nothing waits for a head, and all of them end up at the top.
    when: dict[Place, tuple[float, ...]] = {
        place: (inf if place.kind == "head" else place.y, i) for i, place in enumerate(upwards)
    }
    shared: dict[tuple[Place, int], Place] = {}
    for i, arrow in enumerate(layout.arrows):
        for column in range(arrow.tap.column + arrow.step, arrow.box.column, arrow.step):
            key = (arrow.tap, column)
            if key not in shared:
                shared[key] = Place(column, "crossing")
                when[shared[key]] = (*when[arrow.tap], i, arrow.step * column)
                layout.columns[column].append(shared[key])
            arrow.crossings.append(shared[key])
    for places in layout.columns:
        places.sort(key=when.__getitem__)


def _lift(layout: Layout) -> None:
    """Bring a layer close to the tap or site after it, where there is room above the lines that cross between them."""
    for column in layout.columns:
        for i in range(len(column) - 2, -1, -1):
            place = column[i]
            after = next((j for j in range(i + 1, len(column)) if column[j].kind != "crossing"), i)
            if place.kind != "layers" or after <= i + 1:
                continue
            line, upper = column[after - 1], column[after]
            if line.y + _apart(line, place) + _apart(place, upper) <= upper.y:
                column.insert(after - 1, column.pop(i))


def _settle(layout: Layout) -> None:
    """Stack, then move what only others wait for up to them, and folded layers into the middle of their room."""
    above, upwards = _stack(layout)
    top = layout.top
    for place in reversed(upwards):
        if place.kind == "head":
            place.y = top
        elif place.kind in ("layers", "tap", "crossing"):
            place.y = min(high.y - by for high, by in above.higher[place].items())
    for column in layout.columns:
        for low, place, high in zip(column, column[1:], column[2:], strict=False):
            if place.part is not None and place.part.folded:
                place.y = (low.y + above.higher[low][place] + high.y - above.higher[place][high]) / 2
