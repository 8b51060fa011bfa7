"""Two towers on one clock, as of dGSLM: each sees the other up to the same time, and both are generated together."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zippkit
from helpers.compositions import make, make_spec, tower
from helpers.greedy import greedy, sharp
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.errors import DataError, SpecError
from zippkit.generation.api import generate_batch

pytestmark = pytest.mark.slow

KINDS: dict[str, dict[str, Any]] = {
    "cross_attention": {"n_heads": 2},
    "gated_cross_attention": {"n_heads": 2, "ffn_mult": 2, "placement": "before"},
}


@cache
def pair(kind: str) -> Composition:
    """Left and right read each other in both layers."""
    towers = {name: tower(2, 8, 8, {"tied": False}) for name in ("left", "right")}
    both = {"kind": kind, "every": 1, "clock": "sync", "config": KINDS[kind]}
    links = [{"from": a, "into": b, **both} for a, b in (("left", "right"), ("right", "left"))]
    return sharp(make(towers, links))


def dialogue(left: list[int], right: list[int]) -> list[Segment]:
    return [Segment("left", left), Segment("right", right)]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_sees_the_other_up_to_and_including_the_same_time(kind: str) -> None:
    zipped = pair(kind)
    before = zipped.model(zipped.collate([dialogue([1, 2, 3, 4], [5, 4, 3, 2])]))
    for time in range(1, 5):
        for changed, other in (("left", "right"), ("right", "left")):
            tokens = {"left": [1, 2, 3, 4], "right": [5, 4, 3, 2]}
            tokens[changed][time - 1] = 0
            after = zipped.model(zipped.collate([dialogue(**tokens)]))
            moved = (before[other] != after[other]).any(dim=-1)[0]
            assert moved.tolist() == [t >= time for t in range(6)]


@pytest.mark.parametrize("kind", KINDS)
def test_certificates(kind: str) -> None:
    report = zippkit.verify(zippkit.compile(pair(kind).spec), only=["C1", "C2", "C7"])
    assert report.passed, str(report)


@pytest.mark.parametrize("kind", KINDS)
def test_both_are_generated_together(kind: str) -> None:
    zipped = pair(kind)
    rows = [dialogue([1, 2, 3], [4, 5, 0]), dialogue([2], [2])]
    found = generate_batch(zipped, rows, ["left", "right"], 6)
    assert found == [greedy(zipped, row, ["left", "right"], 6) for row in rows]
    assert found[0] != found[1]
    assert all(len(left.tokens) == len(right.tokens) for left, right in found)


@cache
def unlike() -> Composition:
    """The two end with other ids, each of which is a plain token of the other."""
    towers = {
        "left": tower(2, 8, 8, {"tied": False}) | {"frame": {"begin": 6, "end": 3}},
        "right": tower(2, 8, 9, {"tied": False}) | {"frame": {"begin": 2, "end": 1}},
    }
    both = {"kind": "cross_attention", "every": 1, "clock": "sync", "config": {"n_heads": 2}}
    return sharp(make(towers, [{"from": a, "into": b, **both} for a, b in (("left", "right"), ("right", "left"))]))


def test_either_s_own_end_ends_both() -> None:
    zipped = unlike()
    rows = [dialogue([a, b], [b, a]) for a in range(8) for b in range(8)]
    found = generate_batch(zipped, rows, ["left", "right"], 6)
    assert found == [greedy(zipped, row, ["left", "right"], 6) for row in rows]
    left, right = ([token for pair in found for token in pair[k].tokens] for k in range(2))
    assert 3 not in left and 1 not in right, "its own end ends it"
    assert 1 in left and 3 in right, "the other's end is a token like others"
    assert 0 < sum(len(pair[0].tokens) < 6 for pair in found) < len(found)


TOKENS = st.lists(st.integers(0, 5), max_size=4)
TURN = st.one_of(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=4).map(
        lambda pairs: dialogue([a for a, _ in pairs], [b for _, b in pairs])
    ),
    st.builds(Segment, st.just("left"), TOKENS).map(lambda segment: [segment, Segment("left", [])]),
)
"""A dialogue of both, or left speaking by itself."""
ROWS = st.lists(
    st.lists(TURN, max_size=2).map(lambda turns: [s for turn in turns for s in turn]), min_size=1, max_size=3
)
WANTED = st.sampled_from([["left", "right"], ["right", "left"], ["left", "right", "left", "right"], ["right"]])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(rows=ROWS, wanted=WANTED)
def test_whatever_came_before(kind: str, rows: list[list[Segment]], wanted: list[str]) -> None:
    zipped = pair(kind)
    if wanted[0] == "right" and any(row[-1:] == [Segment("left", [])] for row in rows):
        with pytest.raises(DataError, match="ends with a segment of 'left', and 'right' next to it would be"):
            generate_batch(zipped, rows, wanted, 4)
        return
    assert generate_batch(zipped, rows, wanted, 4) == [greedy(zipped, row, wanted, 4) for row in rows]


def test_kinds_that_read_whole_segments_or_places_are_refused() -> None:
    towers = {"left": tower(2), "right": tower(2)}
    for kind in ("prefix", "resampler"):
        with pytest.raises(SpecError, match="reads whole segments, so its towers cannot advance together"):
            zippkit.compile(make_spec(towers, [{"kind": kind, "from": "left", "into": "right", "clock": "sync"}]))
