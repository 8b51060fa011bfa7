"""Repeats are drawn once, what is frozen or adapted is drawn where it is, and every colour has a dark one."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import astuple
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.compositions import link, make_spec, tower
from zippkit.plan.diagram import figure
from zippkit.plan.diagram.dark import DARK
from zippkit.plan.diagram.diagram import drawn_sites, mermaid, svg
from zippkit.plan.diagram.freezing import Freezing, begins
from zippkit.plan.diagram.repeats import find_repeats
from zippkit.plan.graph import Graph, build_graph
from zippkit.spec.composition_spec import CompositionSpec

SVG = "{http://www.w3.org/2000/svg}"
COLOURS = re.compile(r"#[0-9a-f]{6}\b")


def both(towers: dict[str, Any], *links: dict[str, Any]) -> tuple[CompositionSpec, Graph]:
    spec = make_spec(towers, list(links))
    return spec, build_graph(spec)


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def height(picture: str) -> float:
    return float(ElementTree.fromstring(picture).get("height", ""))


def sites(graph: Graph) -> set[Any]:
    return {astuple(site)[:6] for site in graph.sites}


@pytest.mark.parametrize(
    ("towers", "links", "words"),
    [
        ((30, 30), [("speech", "text", {"every": 1})], {"layers 2-29, 28 times", "gated cross attention, 28 times"}),
        ((32, 6), [("speech", "text", {"every": 4, "source": "final"})], {"layers 5-28, 6 times"}),
        (
            (30, 30),
            [("speech", "text", {"every": 1}), ("text", "speech", {"every": 2})],
            {"layers 3-28, 13 times", "gated cross attention, 26 times", "gated cross attention, 13 times"},
        ),
    ],
)
def test_many_equal_layers_are_drawn_once(towers: tuple[int, int], links: list[Any], words: set[str]) -> None:
    spec, graph = both(
        {"text": tower(towers[0], freeze=True), "speech": tower(towers[1])},
        *(link(source, target, **more) for source, target, more in links),
    )
    picture = svg(spec, graph)
    assert words <= set(texts(picture))
    assert drawn_sites(picture) == sites(graph)
    assert height(picture) < 800


def test_a_run_ends_where_layers_begin_to_be_trained() -> None:
    rules = {"layers.[0-9].*": "freeze", "layers.1[0-9].*": "train", "[!l]*": "freeze"}
    spec, graph = both({"text": tower(20, freeze=rules), "speech": tower(20)}, link("speech", "text", every=1))
    zones = find_repeats(spec, graph).zones
    assert (zones["text"].first, zones["text"].last) == (zones["speech"].first, zones["speech"].last)
    assert len({Freezing(spec.towers["text"]).layer(depth).style for depth in range(*zones["text"][1:3])}) == 1
    assert drawn_sites(svg(spec, graph)) == sites(graph)


@st.composite
def long_compositions(draw: st.DrawFn) -> tuple[CompositionSpec, Graph]:
    """Two or three towers that are deep enough for runs, with links of some strides."""
    names = ["text", "speech", "vision"][: draw(st.integers(2, 3))]
    towers = {name: tower(draw(st.integers(6, 26)), freeze=draw(st.booleans())) for name in names}
    pairs = [(a, b) for a in names for b in names if a < b]
    links = [
        link(source, target, every=draw(st.integers(1, 4)), source=draw(st.sampled_from(["same", "final"])))
        for source, target in draw(st.lists(st.sampled_from(pairs), unique=True))
    ]
    return both(towers, *({key: value for key, value in each.items() if value != "same"} for each in links))


@settings(max_examples=40, deadline=None)
@given(long_compositions())
def test_whatever_is_folded_all_sites_are_drawn(composition: tuple[CompositionSpec, Graph]) -> None:
    assert drawn_sites(svg(*composition)) == sites(composition[1]) == drawn_sites(mermaid(*composition))


def test_layers_that_rules_freeze_are_drawn_frozen() -> None:
    rules = {"layers.[0-5].*": "freeze", "layers.[67].*": "train", "embed_tokens.*": "train", "norm.*": "freeze"}
    spec, graph = both({"text": tower(8, freeze=rules)})
    freezing = Freezing(spec.towers["text"])
    assert [freezing.layer(depth).style for depth in range(1, 9)] == ["frozen"] * 6 + ["trained"] * 2
    text = mermaid(spec, graph)
    assert '["layers 1-6"]:::frozen' in text and '["layers 7-8"]:::trained' in text
    assert 'vocab 20"]:::trained' in text and '["head"]:::frozen' in text


def test_adapters_are_drawn_on_the_layers_that_have_them() -> None:
    lora = {"pattern": "layers.[01].self_attn.?_proj.weight"}
    spec, graph = both({"text": tower(4, freeze=True, lora=lora)})
    assert texts(svg(spec, graph)).count("LoRA") == 2, "on layers 1-2, and in the legend"
    assert '["layers 1-2<br>LoRA"]' in mermaid(spec, graph) and '["layers 3-4"]' in mermaid(spec, graph)


@settings(max_examples=200)
@given(st.text("ab.*?1", max_size=8), st.text("ab.1", max_size=4), st.text("ab.1", max_size=4))
def test_a_pattern_begins_like_every_name_that_it_matches(pattern: str, prefix: str, rest: str) -> None:
    if fnmatch.fnmatchcase(prefix + rest, pattern):
        assert begins(pattern, prefix)


def test_a_class_of_letters_matches_one_of_them() -> None:
    assert begins("layers.[0-5].*", "layers.3.") and not begins("layers.[0-5].*", "layers.7.")
    assert begins("layers.[!0-5].*", "layers.7.") and not begins("layers.[!0-5].*", "layers.3.")
    assert begins("*.weight", "layers.3.") and not begins("norm.*", "layers.3.")


def test_every_colour_has_a_dark_one() -> None:
    used = set(COLOURS.findall(Path(figure.__file__).read_text(encoding="utf-8")))
    assert used == DARK.keys()


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_their_ground(dark: bool) -> None:
    grounds = [
        "#ffffff",
        *(look.fill for look in figure.LOOKS.values()),
        *(look.panel for look in figure.LOOKS.values()),
    ]
    pairs = [(figure.INK, ground) for ground in grounds] + [(ink, "#ffffff") for ink in figure.LINK_COLOURS]
    for pair in pairs:
        low, high = sorted(luminance(DARK[colour] if dark else colour) for colour in pair)
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


def test_a_figure_says_in_words_what_it_shows() -> None:
    spec, graph = both({"text": tower(4, freeze=True), "speech": tower(4)}, link("speech", "text", every=2))
    said = ElementTree.fromstring(svg(spec, graph)).findtext(f"{SVG}desc") or ""
    assert "text: decoder, 4 layers, dim 16, vocab 20, frozen" in said
    assert "speech_to_text: gated cross attention, MLP x3, 2 sites" in said
