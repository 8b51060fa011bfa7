"""A model that tells what comes next: its labels, its loss, and generation in the order that it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zippkit
from helpers.compositions import link, make_spec, randomise, tower
from helpers.greedy import sharp
from zippkit.batch.batch import IGNORE, Segment
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.generation.api import generate, generate_batch
from zippkit.generation.row import MAX_SEGMENTS
from zippkit.plan.plan import Wanted
from zippkit.spec.part_sections import Next
from zippkit.spec.sampling import Sampling

pytestmark = pytest.mark.slow

LINKS = [link("speech", "text", every=1), link("text", "speech", every=1)]
NAMES = ["text", "speech"]


def composition() -> Composition:
    towers = {name: tower(2, 8, 8, {"tied": False}) for name in NAMES}
    return zippkit.compile(make_spec(towers, LINKS).model_copy(update={"next": Next()}))


@cache
def chooser() -> Composition:
    """In float64, with heads that choose now this and now that."""
    zipped = composition()
    randomise(zipped.model)
    return sharp(zipped)


def test_labels_are_at_the_ends_and_name_what_follows() -> None:
    rows = [
        [Segment("speech", [1, 2]), Segment("text", [3]), Segment("text", [])],
        [Segment("text", [4, 5, 0])],
    ]
    batch = composition().collate(rows)
    found = {name: each.following for name, each in batch.towers.items()}
    none = IGNORE
    # Text is 0, speech 1, and 2 says that nothing follows.
    assert found["speech"] is not None and found["speech"].tolist() == [[none, none, none, 0], [none] * 4]
    assert found["text"] is not None
    assert found["text"].tolist() == [[none, none, 0, none, 2], [none, none, none, none, 2]]


def test_towers_with_one_clock_are_followed_together() -> None:
    towers = {name: tower(2, 8, 8) for name in ("left", "right", "text")}
    links = [link(a, b, every=1, clock="sync") for a, b in (("left", "right"), ("right", "left"))]
    spec = make_spec(towers, [*links, link("left", "text", every=1)]).model_copy(update={"next": Next()})
    batch = zippkit.compile(spec).collate([[Segment("left", [1]), Segment("right", [2]), Segment("text", [3])]])
    ends = [int(batch.towers[name].following[0, 2]) for name in ("left", "right", "text")]  # type: ignore[index]
    assert ends == [2, 2, 3]


def test_it_is_learnt_beside_the_tokens() -> None:
    zipped = composition()
    rows = [[Segment("speech", [1, 2]), Segment("text", [3])], [Segment("text", [4]), Segment("text", [5])]]
    batch = zipped.collate(rows)
    adam = torch.optim.Adam(zipped.model.parameters(), lr=0.01)
    first = None
    for _ in range(60):
        losses = zipped.loss(zipped.model(batch), batch)
        first = first or losses["next"].item()
        adam.zero_grad()
        losses["total"].backward()
        adam.step()
    assert first is not None and losses["next"].item() < 0.3 * first
    n_text, n_speech = (int((batch.towers[name].targets != IGNORE).sum()) for name in NAMES)
    tokens = (losses["text"] * n_text + losses["speech"] * n_speech) / (n_text + n_speech)
    assert torch.allclose(losses["total"], tokens + losses["next"])


def told(zipped: Composition, row: Sequence[Segment]) -> int:
    """What the model tells after a whole sequence."""
    batch = zipped.collate([row])
    name = row[-1].tower
    plan = zipped.plan.prune(Wanted(sees=batch.sees, parts={f"next.{name}"}))
    logits = zipped.model.run(plan, batch.towers, True)[f"next.{name}"][0]
    return int(logits[int((batch.towers[name].order >= 0).sum()) - 1].argmax())


def next_token(zipped: Composition, row: Sequence[Segment]) -> int:
    batch, name = zipped.collate([row]), row[-1].tower
    logits = zipped.model.run(zipped.plan.prune(Wanted({name}, batch.sees)), batch.towers, True)[name][0]
    return int(logits[int((batch.towers[name].order >= 0).sum()) - 2].argmax())


@torch.inference_mode()
def naive(zipped: Composition, prompt: Sequence[Segment], max_tokens: int) -> list[Segment]:
    row = list(prompt)
    for _ in range(MAX_SEGMENTS):
        following = told(zipped, row)
        if following == len(NAMES):
            break
        tokens: list[int] = []
        while len(tokens) < max_tokens:
            token = next_token(zipped, [*row, Segment(NAMES[following], tokens)])
            if token == 7:
                break
            tokens.append(token)
        row.append(Segment(NAMES[following], tokens))
    return row[len(prompt) :]


SEGMENT = st.builds(Segment, st.sampled_from(NAMES), st.lists(st.integers(0, 4), max_size=4))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(SEGMENT, min_size=1, max_size=2), min_size=1, max_size=3))
def test_rows_choose_for_themselves_as_the_whole_sequence_tells(rows: list[list[Segment]]) -> None:
    found = generate_batch(chooser(), rows, "auto", 3)
    assert found == [naive(chooser(), row, 3) for row in rows]


def test_all_choices_occur() -> None:
    """So that the test above can fail."""
    rows = [[Segment(name, [a, b])] for name in NAMES for a in range(5) for b in range(5)]
    found = generate_batch(chooser(), rows, "auto", 3)
    assert {segment.tower for row in found for segment in row} == set(NAMES)
    assert len({len(row) for row in found}) > 2 and max(map(len, found)) <= MAX_SEGMENTS


def test_a_search_is_followed_too() -> None:
    rows = [[Segment("speech", [a, 2])] for a in range(5)]
    ways = {"text": Sampling(beams=3)}
    found = generate_batch(chooser(), rows, "auto", 3, ways)
    for row, new in zip(rows, found, strict=True):
        assert new == generate(chooser(), row, "auto", 3, ways)
        for i in range(len(new)):
            assert NAMES[told(chooser(), [*row, *new[:i]])] == new[i].tower


def test_who_cannot_choose_says_so() -> None:
    plain = zippkit.compile(make_spec({"text": tower()}))
    with pytest.raises(ZippkitError, match=r"not trained to tell what comes next; put `next: \{\}` in its spec"):
        generate(plain, [Segment("text", [1])], "auto")
    with pytest.raises(ZippkitError, match="prompt 1 is empty"):
        generate_batch(chooser(), [[Segment("text", [1])], []], "auto")


def test_every_certificate_holds_and_it_is_saved(tmp_path: Any) -> None:
    zipped = composition()
    assert zippkit.verify(zipped).passed
    zipped.save(tmp_path / "saved")
    again = zippkit.load(tmp_path / "saved")
    assert again.spec.next is not None
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), zipped.model.parameters(), strict=True))
