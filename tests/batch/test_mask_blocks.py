"""Masks of long rows as blocks: each block says what the mask says of its two segments."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.compositions import link, make_spec, tower
from zippkit.batch.batch import Segment
from zippkit.batch.collate import collate
from zippkit.batch.mask_blocks import block_picture, runs_of, seen
from zippkit.batch.mask_view import Masks, mask_views
from zippkit.errors import ZippkitError
from zippkit.plan.graph import build_graph

SVG = "{http://www.w3.org/2000/svg}"
GRAPH = build_graph(
    make_spec(
        {"text": tower(), "speech": tower(), "image": tower()},
        [link("speech", "text", every=2), link("text", "speech", every=4), link("image", "text", every=2)],
    )
)
LINKED = {("text", "speech"), ("speech", "text"), ("text", "image")}
TIP = re.compile(r"(\w+), segment (\d+), sees (\w+), segment (\d+): (.*)")
rows = st.lists(st.tuples(st.sampled_from(["text", "speech", "image"]), st.integers(1, 6)), min_size=1, max_size=6)


def masks_of(row: list[tuple[str, int]]) -> Masks:
    return mask_views(GRAPH, collate([[Segment(name, [5] * n) for name, n in row]], GRAPH.towers))


def tips(picture: str) -> dict[tuple[str, str, str, str], str]:
    titles = [title.text or "" for title in ElementTree.fromstring(picture).iter(f"{SVG}title")]
    found = [match.groups() for match in map(TIP.fullmatch, titles) if match]
    return {ends: how for *ends_, how in found for ends in [tuple(ends_)]}  # type: ignore[misc]


@settings(max_examples=40, deadline=None)
@given(rows)
def test_a_block_for_each_pair_of_segments_that_can_see(row: list[tuple[str, int]]) -> None:
    views = list(masks_of(row).views())
    found = tips(block_picture(views, list(GRAPH.towers)))
    runs = runs_of(views)
    assert [run.tower for run in runs] == [name for name, _ in row]
    pairs = {(t.tower, str(t.segment), s.tower, str(s.segment)) for t in runs for s in runs}
    assert found.keys() == {pair for pair in pairs if pair[0] == pair[2] or (pair[0], pair[2]) in LINKED}
    for (target, i, source, j), how in found.items():
        # The order of segments decides, and nothing else.
        assert how == ("all" if int(j) < int(i) else "none" if int(j) > int(i) else "causal"), (target, source)


def test_what_a_part_of_a_mask_is_called() -> None:
    mask = next(masks_of([("text", 3)]).views()).dense
    assert seen(mask) == "causal" and seen(mask[1:, :1]) == "all" and seen(mask[:1, 1:]) == "none"
    assert seen(mask[:2]) == "3 of 10 pairs"


def test_long_rows_are_drawn_by_segments_and_short_ones_by_tokens(tmp_path: Path) -> None:
    masks_of([("speech", 60), ("text", 4)]).save(tmp_path / "long.svg")
    masks_of([("speech", 3), ("text", 2)]).save(tmp_path / "short.svg")
    masks_of([("speech", 3), ("text", 2)]).save(tmp_path / "told.svg", by="segment")
    assert [bool(tips((tmp_path / f"{name}.svg").read_text())) for name in ("long", "short", "told")] == [1, 0, 1]
    with pytest.raises(ZippkitError, match=r"segments are drawn as \.svg"):
        masks_of([("text", 2)]).save(tmp_path / "a.png", by="segment")


def test_a_segment_is_named_by_its_length_and_first_words() -> None:
    labels = [run.label for run in runs_of(list(masks_of([("speech", 60), ("text", 1)]).views()))]
    assert labels == ["speech, 62: <b> 5 5 5 5 5 5 5 5 5 5 5 5 5…", "text, 3: <b> 5 <e>"]
