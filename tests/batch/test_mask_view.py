"""Masks as text and as pictures: the design's worked example, rows that differ, tokens that are hard to print."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import pytest
import torch

from helpers.compositions import link, make_spec, tower
from zippkit.batch.batch import Batch, Segment
from zippkit.batch.collate import collate
from zippkit.batch.mask_view import Masks, mask_views
from zippkit.batch.masks import cross_mask
from zippkit.errors import ZippkitError
from zippkit.plan.graph import Graph, build_graph
from zippkit_towers.decoder.config import DecoderConfig

pytestmark = pytest.mark.slow

GRAPH = build_graph(
    make_spec({"text": tower(), "speech": tower()}, [link("speech", "text", every=2), link("text", "speech", every=4)])
)
WORKED = [Segment("text", [0, 1]), Segment("speech", [7, 8]), Segment("text", [2])]
"""The example of `zippkit.batch.masks`: text "ab", then speech 7 8, then text "c"."""
LETTERS = {"text": "abc".__getitem__}


def view(*rows: list[Segment], graph: Graph = GRAPH) -> tuple[Masks, Batch]:
    batch = collate(rows, graph.towers)
    return mask_views(graph, batch, LETTERS), batch


def test_the_worked_example() -> None:
    masks, _ = view(WORKED)
    assert str(masks) == (
        """\
text sees itself
       <b>   a   b <e> <b>   c <e>
         0   1   2   3   8   9  10
<b>  0   #   .   .   .   .   .   .
  a  1   #   #   .   .   .   .   .
  b  2   #   #   #   .   .   .   .
<e>  3   #   #   #   #   .   .   .
<b>  8   #   #   #   #   #   .   .
  c  9   #   #   #   #   #   #   .
<e> 10   #   #   #   #   #   #   #

speech sees itself
      <b>   7   8 <e>
        4   5   6   7
<b> 4   #   .   .   .
  7 5   #   #   .   .
  8 6   #   #   #   .
<e> 7   #   #   #   #

text sees speech (speech_to_text)
       <b>   7   8 <e>
         4   5   6   7
<b>  0   .   .   .   .
  a  1   .   .   .   .
  b  2   .   .   .   .
<e>  3   .   .   .   .
<b>  8   #   #   #   #
  c  9   #   #   #   #
<e> 10   #   #   #   #

speech sees text (text_to_speech)
      <b>   a   b <e> <b>   c <e>
        0   1   2   3   8   9  10
<b> 4   #   #   #   #   .   .   .
  7 5   #   #   #   #   .   .   .
  8 6   #   #   #   #   .   .   .
<e> 7   #   #   #   #   .   .   ."""
    )


def test_another_row_is_shown_on_request_and_without_its_padding() -> None:
    masks, _ = view(WORKED, [Segment("speech", [5])])
    assert masks.text(1) == (
        """\
speech sees itself
      <b>   5 <e>
        0   1   2
<b> 0   #   .   .
  5 1   #   #   .
<e> 2   #   #   #"""
    )


def test_what_is_shown_is_what_the_model_uses() -> None:
    masks, batch = view(WORKED, [Segment("speech", [5]), Segment("text", [0])])
    text, speech = batch.towers["text"], batch.towers["speech"]
    assert torch.equal(masks.dense("speech_to_text"), cross_mask(text.order, speech.visible))
    assert torch.equal(masks.dense("text_to_speech"), cross_mask(speech.order, text.visible))
    assert masks.dense("text").shape == (2, 7, 7)
    with pytest.raises(ZippkitError, match=r"no mask called 'speech_to_txt'; did you mean 'speech_to_text'\?"):
        masks.dense("speech_to_txt")


def test_a_tower_that_is_not_causal_sees_its_whole_segment() -> None:
    class Encoder(DecoderConfig):
        causal: ClassVar[bool] = False

    speech = Encoder.model_validate(GRAPH.towers["speech"].model_dump())
    masks, _ = view(WORKED, graph=replace(GRAPH, towers=GRAPH.towers | {"speech": speech}))
    assert masks.dense("speech").all()


def test_a_batch_without_a_tower_has_none_of_its_masks() -> None:
    masks, _ = view([Segment("text", [0])])
    assert (list(masks.towers), list(masks.links)) == (["text"], [])


def test_a_long_row_is_written_without_labels() -> None:
    masks, _ = view([Segment("speech", [5] * 40)])
    lines = masks.text().splitlines()
    assert len(lines) == 1 + 42
    assert lines[2] == "  5  1 ##" + "." * 40


@pytest.fixture
def hard() -> Masks:
    """Labels with everything that a plotting library or a file format may stumble on."""
    batch = collate([WORKED], GRAPH.towers)
    return mask_views(GRAPH, batch, {"text": [r"$\frac$", "\n\x00<&>--", "東京"].__getitem__, "speech": lambda _: ""})


def test_tokens_that_cannot_be_printed_are_escaped(hard: Masks) -> None:
    assert r"\n\x00<&>--" in hard.text()
    assert "''" in hard.text()


@pytest.mark.parametrize("name", ["plain", "hard"])
def test_pictures_are_written(tmp_path: Path, request: pytest.FixtureRequest, name: str) -> None:
    masks = request.getfixturevalue("hard") if name == "hard" else view(WORKED)[0]
    masks.save(tmp_path / "masks.svg")
    masks.save(tmp_path / "masks.png")
    picture = ElementTree.fromstring((tmp_path / "masks.svg").read_bytes())
    titles = {group.get("id", "") for group in picture.iter("{http://www.w3.org/2000/svg}g")}
    # A picture for each of the two towers and the two links, each with an axis for the segments on two sides.
    assert {f"axes_{i}" for i in range(1, 5)} <= titles
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "masks.svg").read_bytes()
    masks.save(tmp_path / "masks.svg")
    assert (tmp_path / "masks.svg").read_bytes() == before, "the same masks give the same bytes"


def test_long_rows_and_other_rows_are_drawn_too(tmp_path: Path) -> None:
    masks, _ = view(WORKED, [Segment("speech", [5] * 50), Segment("text", [1] * 3)])
    masks.save(tmp_path / "row0.svg", by="token")
    masks.save(tmp_path / "row1.svg", row=1, by="token")
    texts = [(tmp_path / f"row{i}.svg").read_text() for i in range(2)]
    # Only starts of segments are labelled in the long row, at orders 0 and 52; matplotlib keeps words as comments.
    assert ["<!-- 52 -->" in text for text in texts] == [False, True]
    assert ["<!-- 7 -->" in text for text in texts] == [True, False]


def test_other_suffixes_and_places_are_refused(tmp_path: Path) -> None:
    masks, _ = view(WORKED)
    with pytest.raises(ZippkitError, match=r"ends in \.svg or \.png, got '\.pdf'"):
        masks.save(tmp_path / "masks.pdf")
    with pytest.raises(ZippkitError, match="cannot be written"):
        masks.save(tmp_path / "nowhere" / "masks.png")


def test_matplotlib_waits_until_a_picture_is_wanted() -> None:
    code = "import sys, zippkit.batch.mask_view; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
