"""Generation where something ends early: cancelled rows, full towers, iterations that stop and go on."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

import zippkit
from helpers.compositions import link, make, make_spec, randomise, tower
from helpers.greedy import sharp, two
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.generation.api import generate, generate_batch, stream
from zippkit.spec.part_sections import Next
from zippkit.spec.sampling import Sampling

PENALTY = 5.0


def choosing(towers: dict[str, Any], links: list[dict[str, Any]]) -> Composition:
    """A composition that always says that the first modality comes next."""
    zipped = zippkit.compile(make_spec(towers, links).model_copy(update={"next": Next()}))
    randomise(zipped.model)
    with torch.no_grad():
        for head in zipped.model.next.values():
            out: Any = head.out
            out.weight.zero_()
            out.bias.zero_()
            out.bias[0] = 9
    return sharp(zipped)


@pytest.mark.parametrize("max_len", [6, 9, 15, 20])
def test_a_model_does_not_choose_what_has_no_room(max_len: int) -> None:
    towers = {name: tower(2, 8, 8, {"tied": False, "max_len": max_len}) for name in ("text", "speech")}
    zipped = choosing(towers, [link("speech", "text", every=1), link("text", "speech", every=1)])
    prompt = [Segment("speech", [1, 2])]
    answer = generate(zipped, prompt, "auto", 4)
    assert {segment.tower for segment in answer} <= {"text"}
    assert len(zipped.collate([[*prompt, *answer]]).towers["text"].tokens[0]) <= max_len


def test_a_model_does_not_choose_what_would_join_the_segment_before() -> None:
    towers = {name: tower(2, 8, 8, {"tied": False}) for name in ("left", "right", "text")}
    ends = (("left", "right"), ("right", "left"))
    links = [*(link(a, b, every=1, clock="sync") for a, b in ends), link("left", "text", every=1)]
    zipped, prompt = choosing(towers, links), [Segment("right", [1, 2])]
    answer = generate(zipped, prompt, "auto", 5)
    assert answer == []


def test_a_row_that_is_cancelled_while_another_one_speaks() -> None:
    prompts = [[Segment("speech", [1])], [Segment("text", [1])]]
    for limit in (0, 6):
        generation = stream(two(), prompts, [["text"], ["speech", "text"]], limit)
        kept: list[int] | None = None
        for piece in generation:
            if piece.row == 0 and kept is None:
                generation.cancel(1)
                kept = [len(segment.tokens) for segment in generation.segments[1]]
        assert [len(segment.tokens) for segment in generation.segments[1]] == kept
        assert generation.segments[0] == generate(two(), prompts[0], ["text"], limit)


def test_what_is_kept_for_a_cancelled_row_is_forgotten() -> None:
    generation = stream(two(), [[Segment("speech", [1])]] * 2, ["text", "speech"], 6)
    for piece in generation:
        if piece.row == 0:
            generation.cancel(0)
    assert not any(pending.steps or pending.since for pending in generation.batch.decoding.pending.values())


def test_whoever_stops_goes_on_where_it_was() -> None:
    prompts = [[Segment("speech", [1, 2])], [Segment("speech", [2, 1])]]
    whole = list(stream(two(), prompts, ["text"], 4))
    generation = stream(two(), prompts, ["text"], 4)
    first = next(generation)
    before = generation.segments
    assert [first, *generation] == whole
    assert list(generation) == []
    # What was told before does not change.
    assert sum(len(segment.tokens) for row in before for segment in row) <= 2


@pytest.mark.parametrize("beams", [1, 3])
def test_a_penalty_remembers_what_was_generated_and_nothing_else(beams: int) -> None:
    zipped, way = two(), Sampling(beams=beams, repetition_penalty=PENALTY)
    for first, second in product(range(4), repeat=2):
        prompt = [Segment("speech", [first, second]), Segment("text", [3])]
        at_once = generate(zipped, prompt, ["text", "text"], 4, way)
        one = generate(zipped, prompt, ["text"], 4, way)
        assert at_once == [*one, *generate(zipped, [*prompt, *one], ["text"], 4, way)]


def test_towers_that_share_attention_leave_each_other_room() -> None:
    towers = {"a": tower(2, 8, 8, {"tied": False, "max_len": 12}), "b": tower(2, 8, 8, {"tied": False})}
    ends = (("a", "b"), ("b", "a"))
    zipped = sharp(make(towers, [{"kind": "joint_attention", "from": x, "into": y, "every": 1} for x, y in ends]))
    for token in range(6):
        prompt = [Segment("b", [token, token])]
        zipped.collate([[*prompt, *generate(zipped, prompt, ["b", "a"], 20)]])


def test_a_segment_ends_before_its_places_fill_another_tower() -> None:
    towers = {"text": tower(2, 8, 8, {"tied": False, "max_len": 12}), "speech": tower(2, 8, 8, {"tied": False})}
    zipped = sharp(make(towers, [{"kind": "prefix", "from": "speech", "into": "text", "config": {"stack": 1}}]))
    rows = [[Segment("text", [1])], [Segment("text", [2, 3])]]
    for prompt, answer in zip(rows, generate_batch(zipped, rows, ["speech", "text"], 20), strict=True):
        assert len(zipped.collate([[*prompt, *answer]]).towers["text"].tokens[0]) <= 12


def test_settings_that_mean_nothing_are_told() -> None:
    with pytest.raises(ZippkitError, match=r"outputs: expected a list such as \['text'\], or \"auto\", got 'text'"):
        generate(two(), [], "text")  # type: ignore[arg-type]
    with pytest.raises(ZippkitError, match=r"max_tokens: expected a whole number, 0 or more, got 2.5"):
        generate(two(), [], ["text"], 2.5)  # type: ignore[arg-type]
    assert generate(two(), [], ["text"], 3, Sampling(temperature=1.0), seed=2**70)
