"""Rows that come while others run: each one's answer is what it is alone, whatever ran beside it, and however."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zippkit
from helpers.compositions import link, make, make_spec, tower
from helpers.greedy import sharp, two
from helpers.tiny_decoders import write_windowed
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.errors import DataError, ZippkitError
from zippkit.generation.api import generate, stream
from zippkit.generation.engine import Generation
from zippkit.generation.prompt_pieces import Stretch, cut
from zippkit.model import kv_cache
from zippkit.spec.part_sections import Next
from zippkit.spec.sampling import Sampling

pytestmark = pytest.mark.slow

NAMES = ["text", "speech"]


@cache
def inserted() -> Composition:
    """Text reads speech as a prefix, whose places stand in its own sequence, and speech reads text by resampling."""
    towers = {name: tower(2, 8, 8, {"tied": False}) for name in NAMES}
    prefix = link("speech", "text", kind="prefix", projection={"depth": 1}, config={"stack": 2}, source="embedding")
    return sharp(make(towers, [prefix, link("text", "speech", kind="resampler", source="embedding")]))


@cache
def synchronous() -> Composition:
    """Two towers that advance together, and a third that reads them."""
    towers = {name: tower(2, 8, 8, {"tied": False}) for name in ("left", "right", "text")}
    links = [link(a, b, every=1, clock="sync") for a, b in permutations(["left", "right"])]
    return sharp(make(towers, [*links, link("left", "text", every=1), link("text", "left", every=1)]))


def segments(longest: int = 9) -> st.SearchStrategy[list[Segment]]:
    tokens = st.lists(st.integers(0, 4), max_size=longest)
    return st.lists(st.builds(Segment, st.sampled_from(NAMES), tokens), max_size=4)


ARRIVALS = st.lists(
    st.tuples(st.integers(0, 6), segments(), st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)),
    min_size=1,
    max_size=6,
)
"""How many pieces come before each row is added, its prompt, and its outputs."""


def served(generation: Generation, arrivals: Sequence[tuple[int, list[Segment], list[str]]]) -> list[list[Segment]]:
    """Add rows with pauses between them, and run them all to their ends."""
    for number, (pause, prompt, outputs) in enumerate(arrivals):
        assert generation.add(prompt, outputs, seed=number) == number
        for _ in range(pause):
            next(generation, None)
    list(generation)
    return generation.segments


@settings(max_examples=10, deadline=None)
@given(ARRIVALS, st.sampled_from([1, 3, 100]), st.sampled_from([None, 1, 2]), st.sampled_from([0.0, 1.0]))
def test_answers_do_not_depend_on_what_runs_beside_a_row(
    arrivals: list[tuple[int, list[Segment], list[str]]], chunk: int, most: int | None, temperature: float
) -> None:
    way = Sampling(temperature=temperature)
    for zipped in (two(), inserted()):
        generation = stream(zipped, [], NAMES, 5, way, prefill_chunk=chunk, max_rows=most)
        expected = [generate(zipped, prompt, wanted, 5, way, seed) for seed, (_, prompt, wanted) in enumerate(arrivals)]
        assert served(generation, arrivals) == expected


def test_caches_grow_and_rows_take_the_place_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve rows, of which never more than three run: four places do, whose slots double as they are needed."""
    monkeypatch.setattr(kv_cache, "BLOCK", 2)
    rows = [[Segment("speech", [i % 5, 1] * (i % 4)), Segment("text", [i % 3] * (i % 5))] for i in range(12)]
    generation = stream(two(), rows[:1], ["text", "speech"], 6, prefill_chunk=4, max_rows=3)
    for row in rows[1:]:
        generation.add(row)
    most = 0
    for _ in generation:
        most = max(most, len(generation.batch.rows))
    assert generation.segments == [generate(two(), row, ["text", "speech"], 6) for row in rows]
    assert 3 <= most <= 4 and len(generation.batches) == 1


def test_rows_that_end_give_their_memory_back() -> None:
    rows = [[Segment("speech", [a, 2])] for a in range(4)]
    generation = stream(two(), rows, ["text"], {"text": 6})
    for number in range(3):
        generation.cancel(number)
    rest = list(generation)
    assert {piece.row for piece in rest} == {3}
    assert len(generation.batch.rows) == 1
    assert generation.batch.decoding.caches["text"].keys[0].shape[0] == 1
    assert {memory.order.shape[0] for memory in generation.batch.decoding.memories.values()} == {1}
    assert generation.segments[3] == generate(two(), rows[3], ["text"], 6)


def test_a_generation_that_has_ended_goes_on_with_a_row_that_is_added() -> None:
    generation = stream(two(), [], ["text"], 4)
    assert list(generation) == []
    for number in range(2):
        assert generation.add([Segment("speech", [number, 2])]) == number
        assert {piece.row for piece in generation} == {number}
    assert generation.segments == [generate(two(), [Segment("speech", [n, 2])], ["text"], 4) for n in range(2)]


def test_a_row_is_cancelled_before_and_behind_its_prompt() -> None:
    generation = stream(two(), [], ["text"], 6, prefill_chunk=2)
    numbers = [generation.add([Segment("speech", [a] * 9)]) for a in range(4)]
    generation.cancel(numbers[1])
    next(generation)
    generation.cancel(numbers[0])
    rest = list(generation)
    assert {piece.row for piece in rest} == {2, 3}
    expected = [generate(two(), [Segment("speech", [a] * 9)], ["text"], 6) for a in (2, 3)]
    assert generation.segments[2:] == expected and generation.segments[1] == []


def test_rows_of_several_modalities_and_of_one_beside_each_other() -> None:
    prompt = [Segment("text", [1, 2, 3])]
    generation = stream(two(), [[Segment("speech", [1]), *prompt]], ["text"], 8)
    generation.add(prompt, multimodal=False)
    generation.add(prompt)
    list(generation)
    assert generation.segments[1:] == [generate(two(), prompt, ["text"], 8, multimodal=each) for each in (False, True)]
    assert generation.segments[1] != generation.segments[2]


def test_towers_that_advance_together() -> None:
    pair = [Segment("left", [1, 2, 3]), Segment("right", [3, 2, 1])]
    rows = [[Segment("text", [1] * 7), *pair], pair, [*pair, Segment("text", [2])], [Segment("text", [4])]]
    wanted = ["text", "left", "right"]
    generation = stream(synchronous(), rows[:1], [wanted], 5, prefill_chunk=2)
    for row in rows[1:]:
        generation.add(row, wanted)
        next(generation)
    list(generation)
    assert generation.segments == [generate(synchronous(), row, wanted, 5) for row in rows]


def test_beams_and_penalties_beside_others() -> None:
    rows = [[Segment("speech", [a, 3] * 4)] for a in range(4)]
    ways = {"text": Sampling(beams=3, repetition_penalty=1.5), "speech": Sampling(temperature=0.7)}
    generation = stream(two(), rows[:1], ["speech", "text"], 5, ways, prefill_chunk=3)
    for number, row in enumerate(rows[1:]):
        next(generation)
        generation.add(row, seed=number)
    list(generation)
    expected = [generate(two(), row, ["speech", "text"], 5, ways, seed) for seed, row in enumerate(rows[1:])]
    assert generation.segments[1:] == expected


@cache
def choosing() -> Composition:
    towers = {name: tower(2, 8, 8, {"tied": False}) for name in NAMES}
    spec = make_spec(towers, [link("speech", "text", every=1), link("text", "speech", every=1)])
    return sharp(zippkit.compile(spec.model_copy(update={"next": Next()})))


def test_a_model_that_chooses_what_comes_next() -> None:
    rows = [[Segment("speech", [a, 1] * 3), Segment("text", [a])] for a in range(3)]
    generation = stream(choosing(), rows[:1], "auto", 4, prefill_chunk=3)
    for row in rows[1:]:
        generation.add(row)
        next(generation, None)
    list(generation)
    assert generation.segments == [generate(choosing(), row, "auto", 4) for row in rows]
    with pytest.raises(ZippkitError, match="prompt 3 is empty"):
        generation.add([])


def test_towers_whose_caches_hand_no_row_on_run_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zippkit.generation.row_batch.RowCache", type("Never", (), {}))
    rows = [[Segment("speech", [a, 2] * 3)] for a in range(4)]
    generation = stream(two(), rows[:2], ["text"], 5, prefill_chunk=3)
    for row in rows[2:]:
        generation.add(row)
    most = 0
    for _ in generation:
        most = max(most, len(generation.batches))
    assert most > 1
    assert generation.segments == [generate(two(), row, ["text"], 5) for row in rows]


def test_a_watch_is_told_of_rows_by_their_numbers() -> None:
    seen: dict[int, list[torch.Tensor]] = {}

    def watch(name: str, places: dict[int, tuple[int, int]], logits: torch.Tensor) -> None:
        for row in places:
            seen.setdefault(row, []).append(logits[row])

    rows = [[Segment("speech", [a] * 3)] for a in range(5)]
    generation = stream(two(), rows[:1], ["text"], 5, watch=watch, max_rows=2)
    for row in rows[1:]:
        generation.add(row)
    list(generation)
    for number, (segment,) in enumerate(generation.segments):
        assert [int(logits.argmax()) for logits in seen[number]][: len(segment.tokens)] == segment.tokens


@pytest.mark.parametrize("longest", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("apart", [True, False])
def test_pieces_are_whole_segments_or_parts_of_one(longest: int, apart: bool) -> None:
    ends = [2, 4, 11, 12, 20]
    units = [(first, last - 1, apart) for first, last in zip([0, *ends], ends, strict=False)]
    found = list(cut(units, longest))
    assert [piece.first for piece in found] == [0, *(piece.stop for piece in found[:-1])] and found[-1].stop == 20
    assert all(piece.ends == (piece.stop in ends) for piece in found)
    assert [piece.stop for piece in found if piece.ends] == ends or longest > 1
    for piece in found:
        whole = piece.first in (0, *ends) and piece.ends
        assert piece.stop - piece.first <= longest or (whole and not apart)
    assert list(cut([], longest)) == []
    assert list(cut([(0, 99, False)], longest)) == [Stretch(0, 100, True)]


@pytest.mark.parametrize(
    ("added", "error", "words"),
    [
        ({"outputs": ["speech"]}, ZippkitError, "outputs: 'speech' is not among those that `stream` was given: text"),
        ({"prompt": [Segment("text", [9])]}, DataError, "token 9 is outside the vocabulary of 8"),
        ({"prompt": [Segment("text", [1] * 13)]}, DataError, "the tower takes at most 15"),
    ],
)
def test_what_does_not_fit_is_told_and_changes_nothing(
    added: dict[str, Any], error: type[Exception], words: str
) -> None:
    generation = stream(two(15), [[Segment("text", [1])]], ["text"], 5)
    with pytest.raises(error, match=re.escape(words)):
        generation.add(**{"prompt": [], **added})
    list(generation)
    assert generation.segments == [generate(two(15), [Segment("text", [1])], ["text"], 5)]


@pytest.mark.parametrize("setting", ["prefill_chunk", "max_rows"])
def test_settings_are_at_least_one(setting: str) -> None:
    with pytest.raises(ZippkitError, match=f"{setting}: expected 1 or more, got 0"):
        stream(two(), [], ["text"], 5, **{setting: 0})  # type: ignore[arg-type]


def test_towers_of_transformers(tmp_path: Path) -> None:
    """Whose window is shorter than a row."""
    write_windowed(tmp_path)
    zipped = sharp(make({"text": {"kind": "hf_causal_lm", "config": {"path": str(tmp_path)}}}))
    rows = [[Segment("text", [3 + (a + k) % 6 for k in range(2 * a)])] for a in range(5)]
    generation = stream(zipped, rows[:1], ["text"], 9, prefill_chunk=3)
    for row in rows[1:]:
        generation.add(row)
        next(generation)
    list(generation)
    assert generation.segments == [generate(zipped, row, ["text"], 9) for row in rows]
