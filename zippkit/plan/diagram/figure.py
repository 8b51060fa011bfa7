"""A composition as an SVG figure: towers are columns, layers run upwards, an arrow rises from each tap to its site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from zippkit.plan.diagram.dark import DARK_STYLE
from zippkit.plan.diagram.freezing import Style
from zippkit.plan.diagram.layout import HEIGHTS, Arrow, Place, lay_out_folded
from zippkit.plan.diagram.parts import (
    Part,
    layer_style,
    part_style,
    projection_label,
    style_of,
    tower_facts,
    words,
)
from zippkit.plan.diagram.svg import FONT, box, element, flame, number, snowflake, text, text_width
from zippkit.plan.graph import Graph, LinkSite
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.link_spec import LinkSpec
from zippkit.spec.part_sections import Contrast

INK, GREY, WIRE = "#22303a", "#68757f", "#9aa6ae"
# Okabe and Ito's colours, which colour-blind readers tell apart, darkened so that they can be read as text on white.
LINK_COLOURS = ("#0068a8", "#c04f00", "#007a5a", "#a8447f", "#6a4ba3", "#7d6500", "#a12b2b", "#3f5560")

MARGIN, TITLE, NAME, FACT, ENDS, ROW = 28.0, 44.0, 27.0, 13.0, 48.0, 20.0
"""Pixels around the figure, of its title, of a column's name and each fact below it, past a column's outermost boxes,
of a legend's row."""
PAD = 14.0
"""Pixels between a box and the edge of its panel."""
ROUTE, WIDEST_ROUTE = 56.0, 110.0
"""Width of the strip between two columns in which arrows change their height, by how much they change it."""
LABEL_SIZE, ARROW_HEAD, SIGN = 10.0, 7.0, 60.0
STACK = 3.0
"""Pixels by which the boxes behind one that stands for many look out."""
ADAPTER = 36.0
"""Width of the sign of low-rank adapters on a layer."""
Sign = Callable[[float, float], str]
"""A sign of the legend, drawn at the left and the middle of its row."""


class Look(NamedTuple):
    """Colours of a tower's panel and boxes."""

    panel: str
    edge: str
    fill: str
    stroke: str
    words: str
    dashes: str = ""


SITE = "#fffdf5"
LOOKS: dict[Style, Look] = {
    "frozen": Look("#f3f9fd", "#c3ddef", "#d8ebf9", "#5b9bd0", "frozen"),
    "trained": Look("#fff8f2", "#f2d8c1", "#fde3cd", "#d9853f", "trained"),
    "partly": Look("#f9f7fd", "#d4cbe8", "#e6e0f3", "#8a78bd", "frozen in part, by rules", "4 3"),
}


class Column(NamedTuple):
    """Where a column stands, in pixels from the left."""

    x: float
    box: float
    """Width of its boxes."""
    left: float
    """Arrows run level from here to `right`; labels have room between the panel and these two."""
    right: float

    def moved(self, by: float) -> Column:
        """This column further to the right."""
        return self._replace(x=self.x + by, left=self.left + by, right=self.right + by)

    @property
    def panel(self) -> float:
        return self.box + 2 * PAD


def _marker(style: Style, x: float, y: float) -> str:
    if style == "partly":
        return snowflake(x - 9, y) + flame(x + 9, y)
    return snowflake(x, y) if style == "frozen" else flame(x, y)


def _link_words(link: LinkSpec, n_sites: int) -> str:
    """A link's line in the legend."""
    sites = f"{n_sites} site" + ("s" if n_sites > 1 else "")
    width = f", width {link.projection.width}" if link.projection.width and link.projection.depth > 1 else ""
    ends = f" ({link.source} to {link.target})" if link.name else ""
    clock = ", one clock" if link.clock == "sync" else ""
    frozen = ", frozen" if link.freeze else ""
    return f"{link.label}{ends}: {words(link.kind)}, {projection_label(link)}{width}, {sites}{clock}{frozen}"


def _contrast_words(contrast: Contrast, graph: Graph) -> str:
    """A contrastive loss's line in the legend."""
    part = f"contrastive.{contrast.label}"
    depths = {operation.tower: operation.depth for operation in graph.operations if operation.part == part}
    ends = " and ".join(f"{name} after layer {depth}" for name, depth in depths.items())
    return f"{contrast.label}: contrastive loss, {ends}, weight {contrast.weight:g}"


class _Figure:
    """A composition being drawn; y grows downwards here."""

    def __init__(self, spec: CompositionSpec, graph: Graph) -> None:
        self.spec, self.graph = spec, graph
        self.layout, self.repeats = lay_out_folded(spec, graph)
        self.styles = {name: style_of(tower) for name, tower in spec.towers.items()}
        self.links = {link.label: link for link in spec.links}
        self.colours = {name: i % len(LINK_COLOURS) for i, name in enumerate(self.links)}
        self.facts = {name: tower_facts(tower, graph.towers[name]) for name, tower in spec.towers.items()}
        self.top = TITLE + NAME + FACT * max(map(len, self.facts.values()))
        self.base = self.top + ENDS + self.layout.top
        columns = list(self._columns())
        legend = [list(self._style_legend()), list(self._link_legend())]
        widths = [max((SIGN + text_width(row, 11.5) for _, row in rows), default=0) for rows in legend]
        # The two lists of the legend stand side by side where the towers are that wide.
        room = max(columns[-1].right - MARGIN, text_width(spec.name, 18), *widths)
        beside = room >= sum(widths) + MARGIN
        self.width = room + 2 * MARGIN
        shift = (self.width - MARGIN - columns[-1].right) / 2
        self.columns = [column.moved(shift) for column in columns]
        self.legend = [(MARGIN, i, *row) for i, row in enumerate(legend[0])]
        indent, skipped = (self.width - MARGIN - widths[1], 0) if beside else (MARGIN, len(legend[0]))
        self.legend += [(indent, i, *row) for i, row in enumerate(legend[1], skipped)]
        self.bottom = self.base + ENDS + MARGIN
        self.height = self.bottom + ROW * (max(i for _, i, _, _ in self.legend) + 1) + MARGIN / 2

    def _columns(self) -> Iterator[Column]:
        """Boxes as wide as their words, and room for labels where arrows arrive."""
        edge, routes, label_rooms = MARGIN, self._routes(), self._label_rooms()
        for i, (name, places) in enumerate(zip(self.graph.towers, self.layout.columns, strict=True)):
            facts = self.facts[name]
            labels = (self._words_width(place.part) for place in places if place.part and place.kind != "tap")
            width = max(120.0, text_width(name, 15) + 60, *labels, *(text_width(fact, 11) for fact in facts))
            left = edge + (routes.get(i, ROUTE) if i else 0)
            x = left + label_rooms.get((i, 1), 0) + PAD + width / 2
            edge = x + width / 2 + PAD + label_rooms.get((i, -1), 0)
            yield Column(x, width, left, edge)

    def _words_width(self, part: Part) -> float:
        """Room that a part's words need, and the sign of its adapters."""
        adapted = part.kind == "layers" and layer_style(self.spec, part).adapted
        return text_width(_part_words(part), 11.5) + 20 + (2 * ADAPTER if adapted else 0)

    def _routes(self) -> dict[int, float]:
        """Width of the strip before each column that an arrow enters or leaves on its left."""
        widths: dict[int, float] = {}
        for arrow in self.layout.arrows:
            for a, b in pairwise(arrow.places):
                right, width = max(a.column, b.column), min(ROUTE + 0.2 * abs(a.y - b.y), WIDEST_ROUTE)
                widths[right] = max(widths.get(right, ROUTE), width)
        return widths

    def _label_rooms(self) -> dict[tuple[int, int], float]:
        """Room beside each column for the labels of arrows that arrive in a direction (``step``)."""
        rooms: dict[tuple[int, int], float] = {}
        for arrow in self.layout.arrows:
            place = (arrow.box.column, arrow.step)
            rooms[place] = max(rooms.get(place, 0.0), self._label_width(arrow) + 16)
        return rooms

    def _label(self, arrow: Arrow) -> str:
        return projection_label(self.links[arrow.site.link])

    def _label_width(self, arrow: Arrow) -> float:
        return text_width(self._label(arrow), LABEL_SIZE) + 12

    def _style_legend(self) -> Iterator[tuple[Sign, str]]:
        parts = [place.part for column in self.layout.columns for place in column if place.part]
        shown = {*self.styles.values(), *(part_style(self.spec, part) for part in parts if part.kind != "tap")}
        for style, look in LOOKS.items():
            if style in shown:
                yield partial(_style_sign, style), look.words
        if any(tower.adapts for tower in self.spec.towers.values()):
            yield _adapter_sign, "layers with trained low-rank adapters (LoRA)"
        if self.layout.arrows:
            yield _tap_sign, "state that a link reads, before any rewrites it"

    def _link_legend(self) -> Iterator[tuple[Sign, str]]:
        n_sites = Counter(site.link for site in self.graph.sites)
        for name, link in self.links.items():
            yield partial(_link_sign, self.colours[name]), _link_words(link, n_sites[name])
        for contrast in self.spec.contrastive:
            yield _contrast_sign, _contrast_words(contrast, self.graph)

    def in_words(self) -> str:
        """The figure for those who hear it."""
        towers = (
            f"{name}: {', '.join(self.facts[name])}, {LOOKS[self.styles[name]].words}" for name in self.graph.towers
        )
        return ". ".join([*towers, *(words_of_sign for _, words_of_sign in self._link_legend())]) + "."

    def lines(self) -> Iterator[str]:
        """The file, one element on each line."""
        width, height = number(self.width), number(self.height)
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'font-family="{FONT}" fill="{INK}" role="img" '
            f'style="max-width:100%;height:auto">'
        )
        yield element("title", escape(self.spec.name))
        yield element("desc", escape(self.in_words()))
        yield DARK_STYLE
        heads = "".join(_arrow_head(str(i), LINK_COLOURS[i]) for i in sorted(set(self.colours.values())))
        yield element("defs", _arrow_head("wire", WIRE) + heads)
        yield element("rect", width=self.width, height=self.height, fill="#ffffff")
        middle = (self.columns[0].left + self.columns[-1].right) / 2
        yield text(middle, TITLE / 2, self.spec.name, 17, text_anchor="middle", font_weight="bold")
        for name, column in zip(self.graph.towers, self.columns, strict=True):
            yield from self._panel(name, column)
        yield from self._arrows()
        for name, column, places in zip(self.graph.towers, self.columns, self.layout.columns, strict=True):
            for place in places:
                yield from self._place(name, column, place)
        for arrow in self.layout.arrows:
            yield from self._arrow_label(arrow)
        for x, i, sign, words_of_sign in self.legend:
            y = self.bottom + ROW * (i + 0.5)
            yield sign(x, y)
            yield text(x + SIGN, y, words_of_sign)
        yield "</svg>"

    def _panel(self, name: str, column: Column) -> Iterator[str]:
        """A tower's header, ground and wire."""
        style, config = self.styles[name], self.graph.towers[name]
        look, top = LOOKS[style], self.top
        name_width = text_width(name, 15)
        sign_room = 36.0 if style == "partly" else 18.0
        yield text(column.x + sign_room / 2, TITLE + 8, name, 15, text_anchor="middle", font_weight="bold")
        yield _marker(style, column.x - name_width / 2 - 2, TITLE + 8)
        for i, fact in enumerate(self.facts[name]):
            yield text(column.x, TITLE + 25 + FACT * i, fact, 10.5, text_anchor="middle", fill=GREY)
        low, high = self.base + ENDS, self.base - self.layout.top
        yield box(column.x, (top + low) / 2, column.panel, low - top, radius=10, fill=look.panel, stroke=look.edge)
        wire = f"M{number(column.x)} {number(self.base + 27)}V{number(high - 20)}"
        yield element("path", d=wire, stroke=WIRE, stroke_width=1.4, fill="none", marker_end="url(#arrow-head-wire)")
        ends = ("inputs" if config.continuous else "tokens", "logits" if config.predicts else "states")
        yield text(column.x, self.base + 36, f"{name} {ends[0]}", 10.5, text_anchor="middle", fill=GREY)
        yield text(column.x, high - 36, f"{name} {ends[1]}", 10.5, text_anchor="middle", fill=GREY)

    def _place(self, name: str, column: Column, place: Place) -> Iterator[str]:
        part, y = place.part, self.base - place.y
        if part is None:
            return
        if part.kind == "tap":
            yield element("circle", cx=column.x, cy=y, r=3, fill=INK, data_tap=f"{name}[{part.depth}]")
            return
        look, width, height = LOOKS[part_style(self.spec, part)], column.box, HEIGHTS[part.kind]
        colours: dict[str, Any] = {"fill": look.fill, "stroke": look.stroke, "stroke_dasharray": look.dashes}
        tip = ""
        if part.site is not None:
            fill = LOOKS["frozen"].panel if self.links[part.site.link].freeze else SITE
            colours = {"fill": fill, "stroke": LINK_COLOURS[self.colours[part.site.link]], "stroke_width": 1.5}
            tip = self._sites(part.site)
        if part.n_repeats > 1:
            yield _behind(column.x, y, width, height, colours)
        yield box(column.x, y, width, height, tip=tip, **colours)
        adapted = part.kind == "layers" and layer_style(self.spec, part).adapted
        middle = column.x - (ADAPTER / 2 if adapted else 0)
        yield text(middle, y, _part_words(part), 10.5 if part.site else 11.5, text_anchor="middle")
        if adapted:
            yield _adapter(column.x + width / 2 - ADAPTER / 2 - 3, y)

    def _sites(self, site: LinkSite) -> str:
        """A drawn site and those that are folded into it."""
        return "; ".join(map(str, self.repeats.folded.get(site, (site,))))

    def _arrows(self) -> Iterator[str]:
        """Arrows that share a tap run together, so each bundle is laid on one white edge."""
        bundles: dict[Place, list[Arrow]] = {}
        for arrow in self.layout.arrows:
            bundles.setdefault(arrow.tap, []).append(arrow)
        for bundle in bundles.values():
            ways = [self._way(arrow) for arrow in bundle]
            for way in ways:
                yield element("path", d=way, fill="none", stroke="#ffffff", stroke_width=5)
            for arrow, way in zip(bundle, ways, strict=True):
                colour = self.colours[arrow.site.link]
                yield element(
                    "path",
                    data_site=self._sites(arrow.site),
                    d=way,
                    fill="none",
                    stroke=LINK_COLOURS[colour],
                    stroke_width=1.6,
                    marker_end=f"url(#arrow-head-{colour})",
                )

    def _way(self, arrow: Arrow) -> str:
        """Level beside and through columns; between them, a curve to the next height."""
        way = f"M{number(self.columns[arrow.tap.column].x)} {number(self.base - arrow.tap.y)}"
        for here, there in pairwise(arrow.places):
            first, second = self.columns[here.column], self.columns[there.column]
            out, into = (first.right, second.left) if arrow.step == 1 else (first.left, second.right)
            y, next_y, middle = number(self.base - here.y), number(self.base - there.y), number((out + into) / 2)
            way += f"H{number(out)}C{middle} {y} {middle} {next_y} {number(into)} {next_y}"
        end = self.columns[arrow.box.column]
        return way + f"H{number(end.x - arrow.step * (end.box / 2 + ARROW_HEAD))}"

    def _arrow_label(self, arrow: Arrow) -> Iterator[str]:
        column, width = self.columns[arrow.box.column], self._label_width(arrow)
        x, y = column.x - arrow.step * (column.panel / 2 + 8 + width / 2), self.base - arrow.box.y
        colour = LINK_COLOURS[self.colours[arrow.site.link]]
        yield box(x, y, width, 16, radius=8, fill="#ffffff", stroke=colour)
        yield text(x, y, self._label(arrow), LABEL_SIZE, text_anchor="middle", fill=colour)


def _part_words(part: Part) -> str:
    return part.label if part.n_repeats == 1 else f"{part.label}, {part.n_repeats} times"


def _behind(x: float, y: float, width: float, height: float, colours: dict[str, Any]) -> str:
    """The edge of a box behind another one."""
    corner = f"M{number(x - width / 2 + STACK + 4)} {number(y - height / 2 - STACK)}"
    way = f"{corner}H{number(x + width / 2 + STACK)}V{number(y + height / 2 - 4)}"
    return element("path", d=way, fill="none", stroke=colours["stroke"], stroke_width=1.2)


def _adapter(x: float, y: float) -> str:
    look = LOOKS["trained"]
    sign = box(x, y, ADAPTER - 4, 14, radius=7, fill=look.fill, stroke=look.stroke)
    return sign + text(x, y, "LoRA", 9, text_anchor="middle")


def _adapter_sign(x: float, y: float) -> str:
    return _adapter(x + 18, y)


def _arrow_head(name: str, colour: str) -> str:
    shape = element("path", d="M0 -3.5L7 0L0 3.5Z", fill=colour)
    return (
        f'<marker id="arrow-head-{name}" orient="auto" markerUnits="userSpaceOnUse" markerWidth="8" markerHeight="8" '
        f'viewBox="0 -4 8 8" refX="0" refY="0">{shape}</marker>'
    )


def _style_sign(style: Style, x: float, y: float) -> str:
    look = LOOKS[style]
    swatch = box(x + 8, y, 16, 12, radius=3, fill=look.fill, stroke=look.stroke, stroke_dasharray=look.dashes)
    return swatch + _marker(style, x + (37 if style == "partly" else 28), y)


def _tap_sign(x: float, y: float) -> str:
    return element("circle", cx=x + 8, cy=y, r=3, fill=INK)


def _contrast_sign(x: float, y: float) -> str:
    way = f"M{number(x)} {number(y)}h36"
    return element("path", d=way, fill="none", stroke=INK, stroke_width=1.4, stroke_dasharray="2 3")


def _link_sign(colour: int, x: float, y: float) -> str:
    way = f"M{number(x)} {number(y)}h36"
    ink = LINK_COLOURS[colour]
    return element("path", d=way, fill="none", stroke=ink, stroke_width=1.6, marker_end=f"url(#arrow-head-{colour})")


def svg(spec: CompositionSpec, graph: Graph) -> str:
    """A figure: towers side by side, layers from bottom to top, a site no lower than the state that it reads.

    The path of each site carries it as ``data-site``, and the dot where it starts carries the state as ``data-tap``.
    """
    return "\n".join(_Figure(spec, graph).lines()) + "\n"
