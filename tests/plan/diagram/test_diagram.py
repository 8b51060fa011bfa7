"""Diagrams draw exactly the sites of the graph, where they act, and nothing on anything else (certificate C9)."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import astuple
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.compositions import link, make_spec, tower
from zippkit.errors import ZippkitError
from zippkit.plan.diagram import diagram, svg
from zippkit.plan.diagram import layout as diagram_layout
from zippkit.plan.diagram import parts as diagram_parts
from zippkit.plan.diagram.diagram import drawn_sites, mermaid, write_diagram
from zippkit.plan.graph import Graph, LinkSite, build_graph
from zippkit.spec.composition_spec import CompositionSpec

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("text", "speech", "vision", "motion")
FREEZING = (True, False, {"layers.*": "freeze", "embed_tokens.weight": "train", "norm.weight": "train"})


def both(spec_towers: dict[str, Any], *links: dict[str, Any]) -> tuple[CompositionSpec, Graph]:
    spec = make_spec(spec_towers, list(links))
    return spec, build_graph(spec)


PAIR = both(
    {"text": tower(4, freeze=True), "speech": tower(4)},
    link("speech", "text", every=2),
    link("text", "speech", every=4),
)


@st.composite
def compositions(draw: st.DrawFn) -> tuple[CompositionSpec, Graph]:
    """Up to four towers, and sites that wait for each other in no circle."""
    depths = dict(zip(NAMES, draw(st.lists(st.integers(1, 8), min_size=1, max_size=4)), strict=False))
    towers = {}
    for name, n_layers in depths.items():
        more = {"input_projection": {"depth": 1}} if len(depths) > 1 and draw(st.booleans()) else {}
        towers[name] = tower(n_layers, freeze=draw(st.sampled_from(FREEZING)), **more)
    states: nx.DiGraph[Any] = nx.DiGraph()
    for name, n_layers in depths.items():
        nx.add_path(states, [(name, depth) for depth in range(n_layers + 2)])
    sites: dict[tuple[str, str, int], list[dict[str, int]]] = {}
    for _ in range(draw(st.integers(0, 10)) if len(depths) > 1 else 0):
        source, target = draw(st.permutations(list(depths)))[:2]
        site = {"from": draw(st.integers(0, depths[source])), "into": draw(st.integers(1, depths[target]))}
        edge = ((source, site["from"]), (target, site["into"] + 1))
        states.add_edge(*edge)
        if nx.is_directed_acyclic_graph(states):
            sites.setdefault((source, target, draw(st.integers(0, 1))), []).append(site)
        else:
            states.remove_edge(*edge)
    links = [link(s, t, name=f"{s}_{t}_{i}", sites=found) for (s, t, i), found in sites.items()]
    return both(towers, *links)


def expected(graph: Graph) -> set[tuple[Any, ...]]:
    return {astuple(site)[:6] for site in graph.sites}


@settings(max_examples=60)
@given(compositions())
def test_both_diagrams_draw_exactly_the_sites(composition: tuple[CompositionSpec, Graph]) -> None:
    spec, graph = composition
    assert drawn_sites(mermaid(spec, graph)) == expected(graph)
    assert drawn_sites(diagram.svg(spec, graph)) == expected(graph)


@pytest.mark.parametrize(("draw", "mark"), [(mermaid, "==>"), (diagram.svg, "data-site")])
def test_an_edge_that_is_taken_away_is_missed(draw: Any, mark: str) -> None:
    spec, graph = PAIR
    lines = draw(spec, graph).splitlines(keepends=True)
    edges = [i for i, line in enumerate(lines) if mark in line]
    assert len(edges) == len(graph.sites)
    missed = [expected(graph) - drawn_sites("".join(lines[:i] + lines[i + 1 :])) for i in edges]
    assert all(len(sites) == 1 for sites in missed)
    assert set.union(*missed) == expected(graph)


def test_the_kinds_of_specs_that_papers_describe_are_drawn() -> None:
    composition = both(
        {"text": tower(32, freeze=True), "speech": tower(12), "vision": tower(6)},
        link("speech", "text", every=4),
        link("text", "speech", every=3),
        link("vision", "text", every=8, source="final"),
        link("vision", "speech", sites=[{"from": 0, "into": 3}, {"from": 0, "into": 12}]),
    )
    for text in (mermaid(*composition), diagram.svg(*composition)):
        assert len(drawn_sites(text)) == 8 + 4 + 4 + 2
        assert drawn_sites(text) == expected(composition[1])


def test_mermaid_reads_as_expected() -> None:
    spec, graph = both(
        {"text": tower(4, freeze=True, input_projection={}), "speech": tower(3)},
        link("speech", "text", name="bridge", sites=[{"from": 0, "into": 3}], projection={"depth": 1}),
    )
    assert mermaid(spec, graph).split("  classDef")[0] == (
        """\
flowchart BT
  subgraph tower-text["❄ text"]
    embedding-text["embedding<br>decoder<br>4 layers, dim 16<br>vocab 20"]:::frozen
    at-text-0["input projection, MLP x2"]:::trained
    at-text-2["layers 1-2"]:::frozen
    at-text-3["layer 3"]:::frozen
    site-bridge-0-text-3{{"gated cross attention"}}:::site
    at-text-4["layer 4"]:::frozen
    head-text["head"]:::frozen
    embedding-text --> at-text-0 --> at-text-2 --> at-text-3 --> site-bridge-0-text-3 --> at-text-4 --> head-text
  end
  style tower-text fill:#f3f9fd,stroke:#c3ddef
  subgraph tower-speech["🔥 speech"]
    at-speech-0["embedding<br>decoder<br>3 layers, dim 16<br>vocab 20"]:::trained
    at-speech-3["layers 1-3"]:::trained
    head-speech["head"]:::trained
    at-speech-0 --> at-speech-3 --> head-speech
  end
  style tower-speech fill:#fff8f2,stroke:#f2d8c1
  at-speech-0 ==>|"bridge<br>linear"| site-bridge-0-text-3
"""
    )


@pytest.mark.parametrize(
    ("freeze", "style"),
    [
        (True, "frozen"),
        (False, "trained"),
        ({"*": "freeze"}, "frozen"),
        ({"*": "train"}, "trained"),
        (FREEZING[2], "partly"),
    ],
)
def test_what_is_frozen_shows(freeze: Any, style: str) -> None:
    spec, graph = both({"text": tower(freeze=freeze)})
    # Of the rules of the last case, one freezes the layers.
    layers = "frozen" if style == "partly" else style
    assert f'["layers 1-4"]:::{layers}' in mermaid(spec, graph)
    texts = {element.text for element in ElementTree.fromstring(diagram.svg(spec, graph)).iter(f"{SVG}text")}
    assert {"frozen": "frozen", "trained": "trained", "partly": "frozen in part, by rules"}[style] in texts


class Box(NamedTuple):
    """A rectangle of the figure, by its centre."""

    x: float
    y: float
    width: float
    height: float
    tip: str | None

    def meets(self, other: Box) -> bool:
        across = abs(self.x - other.x) < (self.width + other.width) / 2
        return across and abs(self.y - other.y) < (self.height + other.height) / 2


class Line(NamedTuple):
    """A site's arrow: its ends, the stretches on which it runs level, and those on which it changes its height."""

    site: str
    start: tuple[float, float]
    end: tuple[float, float]
    level: list[Box]
    curves: list[Box]


class Figure:
    """An SVG read back."""

    def __init__(self, text: str) -> None:
        self.root = ElementTree.fromstring(text)
        rects = [self._box(rect) for rect in self.root.iter(f"{SVG}rect")]
        # Panels and the ground are taller, the legend's swatches less so.
        self.boxes = [box for box in rects if box.height in (16, 20, 24)]
        self.taps = {
            (float(tap.get("cx", "")), float(tap.get("cy", ""))): tap.get("data-tap")
            for tap in self.root.iter(f"{SVG}circle")
            if tap.get("data-tap")
        }
        self.lines = [self._line(path) for path in self.root.iter(f"{SVG}path") if path.get("data-site")]

    @staticmethod
    def _box(rect: ElementTree.Element) -> Box:
        x, y, width, height = (float(rect.get(key, "0")) for key in ("x", "y", "width", "height"))
        return Box(x + width / 2, y + height / 2, width, height, rect.findtext(f"{SVG}title"))

    @staticmethod
    def _line(path: ElementTree.Element) -> Line:
        steps = re.findall(r"([MHC])([-\d. ]+)", path.get("d", ""))
        points: list[tuple[float, float]] = []
        stretches: dict[str, list[Box]] = {"M": [], "H": [], "C": []}
        for command, numbers in steps:
            values = [float(value) for value in numbers.split()]
            points.append((values[0], points[-1][1]) if command == "H" else (values[-2], values[-1]))
            (x, y), (end, _) = points[-2:] if len(points) > 1 else points * 2
            stretches[command].append(Box((x + end) / 2, y, abs(x - end), 1, None))
        return Line(path.get("data-site", ""), points[0], points[-1], stretches["H"], stretches["C"])


@settings(max_examples=60)
@given(compositions())
def test_an_arrow_joins_the_tap_and_the_box_that_it_names(composition: tuple[CompositionSpec, Graph]) -> None:
    spec, graph = composition
    figure = Figure(diagram.svg(spec, graph))
    boxes = {box.tip: box for box in figure.boxes if box.tip}
    sites = {str(site): site for site in graph.sites}
    assert set(boxes) == {line.site for line in figure.lines}
    assert sorted(site for tip in boxes for site in tip.split("; ")) == sorted(sites)
    for line in figure.lines:
        site, box = sites[line.site.split("; ")[0]], boxes[line.site]
        if "; " not in line.site:
            assert figure.taps[line.start] == f"{site.source}[{site.source_depth}]"
        assert line.end[1] == pytest.approx(box.y, abs=0.11)
        assert abs(line.end[0] - box.x) - box.width / 2 == pytest.approx(7, abs=0.2), "the arrow head touches the box"
        assert line.end[1] <= line.start[1], "no arrow falls"


@settings(max_examples=60)
@given(compositions())
def test_nothing_lies_on_anything_else(composition: tuple[CompositionSpec, Graph]) -> None:
    spec, graph = composition
    figure = Figure(diagram.svg(spec, graph))
    assert not [pair for pair in combinations(figure.boxes, 2) if pair[0].meets(pair[1])]
    for line in figure.lines:
        # An arrow runs through its own label, which has the height of its end.
        others = [box for box in figure.boxes if box.height != 16 or box.y != pytest.approx(line.end[1], abs=0.11)]
        assert not [(line.site, box) for box in others for stretch in line.level if stretch.meets(box)]
        strips = [curve._replace(height=math.inf) for curve in line.curves]
        assert not [(line.site, box) for box in figure.boxes for strip in strips if strip.meets(box)]


@settings(max_examples=40)
@given(compositions())
def test_bringing_a_layer_close_to_its_site_makes_no_figure_taller(composition: tuple[CompositionSpec, Graph]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagram_layout, "_lift", lambda layout: None)
        plain = diagram_layout.lay_out(*composition).top
    assert diagram_layout.lay_out(*composition).top <= plain


@settings(max_examples=60)
@given(compositions())
def test_a_column_keeps_the_order_in_which_a_tower_runs(composition: tuple[CompositionSpec, Graph]) -> None:
    spec, graph = composition
    layout = diagram_layout.lay_out(spec, graph)
    for name, column in zip(graph.towers, layout.columns, strict=True):
        parts = [place.part for place in column if place.part]
        assert parts == list(diagram_parts.tower_parts(spec, graph, name))
        assert [part.depth for part in parts] == sorted(part.depth for part in parts)
        assert all(high.y - low.y >= diagram_layout.GAP for low, high in pairwise(column))
        acting = [part.site for part in parts if part.site]
        in_spec_order = [site for site in graph.sites if site.target == name]
        assert acting == sorted(in_spec_order, key=lambda site: site.target_depth)


def test_a_tap_stands_before_the_sites_of_its_depth() -> None:
    kinds = [part.kind for part in diagram_parts.tower_parts(*PAIR, "text") if part.depth == 4]
    assert kinds == ["layers", "tap", "site", "head"]


def test_two_towers_that_are_aligned_are_joined_by_level_arrows() -> None:
    spec, graph = both({"text": tower(12), "speech": tower(12)}, link("speech", "text", every=3))
    figure = Figure(diagram.svg(spec, graph))
    assert all(line.start[1] == line.end[1] for line in figure.lines)


def test_a_tower_without_links_is_one_box_of_layers() -> None:
    spec, graph = both({"text": tower(32)})
    assert [part.label for part in diagram_parts.tower_parts(spec, graph, "text")] == [
        "embedding",
        "layers 1-32",
        "head",
    ]


def test_the_diagram_needs_no_torch() -> None:
    code = "import sys, zippkit.plan.diagram.diagram; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("suffix", [".svg", ".mmd"])
def test_a_diagram_is_written_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    spec, graph = PAIR
    path = tmp_path / f"tiny{suffix}"
    write_diagram(spec, graph, path)
    assert drawn_sites(path.read_text(encoding="utf-8")) == expected(graph)


def test_other_suffixes_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ZippkitError, match=r"ends in \.svg or \.mmd, got '\.png'"):
        write_diagram(*PAIR, tmp_path / "tiny.png")
    with pytest.raises(ZippkitError, match="cannot be written"):
        write_diagram(*PAIR, tmp_path / "nowhere" / "tiny.svg")
    with pytest.raises(ZippkitError, match="neither a Mermaid flowchart nor SVG"):
        drawn_sites("digraph {}")


def test_words_with_markup_in_them_stay_words() -> None:
    assert ElementTree.fromstring(svg.text(0, 0, '<b> & "c"')).text == '<b> & "c"'
    assert ElementTree.fromstring(svg.box(0, 0, 1, 1, tip="a -> b")).findtext("title") == "a -> b"


def test_a_site_reads_back_as_it_is_written() -> None:
    site = LinkSite("a_2", 3, "x_1", 0, "y", 12)
    path = f'<svg xmlns="http://www.w3.org/2000/svg"><path data-site="{str(site).replace(">", "&gt;")}"/></svg>'
    assert drawn_sites(path) == {astuple(site)[:6]}


@pytest.mark.parametrize(
    "words",
    [
        "gated cross attention",
        "input projection, MLP x2",
        "layers 10-11",
        "MLP x16",
        "motion_to_vision: gated cross attention, linear, 12 sites",
        "state that a link reads, before any rewrites it",
    ],
)
def test_words_fit_into_the_room_that_is_kept_for_them(words: str) -> None:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    # DejaVu is the widest of the fonts that a figure may be shown in.
    drawn = TextPath((0, 0), words, size=10, prop=FontProperties(family="DejaVu Sans")).get_extents().width
    assert drawn <= svg.text_width(words, 10) <= 1.25 * drawn
