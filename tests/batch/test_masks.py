"""Masks: every rendering of "who sees whom" against a double loop over the linear sequence."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.example_batch import EXAMPLE, SEGMENTS, TOWERS
from zippkit.batch.batch import Segment, TowerBatch
from zippkit.batch.collate import collate
from zippkit.batch.describe import describe_cross, describe_self
from zippkit.batch.masks import cache_mask, cross_mask, self_mask

EXAMPLES = st.lists(SEGMENTS, min_size=1, max_size=3).filter(any)


def linear(segments: list[Segment]) -> list[tuple[str, int]]:
    """(tower, segment) of every token of the interleaved sequence, begin and end included."""
    return [(segment.tower, i) for i, segment in enumerate(segments) for _ in range(len(segment.tokens) + 2)]


def loop(examples: list[list[Segment]], target: str, source: str, shape: tuple[int, int, int]) -> torch.Tensor:
    """Which source tokens each target token sees, token by token. True means "may attend"."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, segments in enumerate(examples):
        sequence = linear(segments)
        queries = [i for i, (tower, _) in enumerate(sequence) if tower == target]
        keys = [i for i, (tower, _) in enumerate(sequence) if tower == source]
        for t, query in enumerate(queries):
            for s, key in enumerate(keys):
                same_segment = sequence[query] == sequence[key]
                if target == source:
                    mask[row, t, s] = key <= query if TOWERS[source].causal else same_segment
                else:
                    mask[row, t, s] = key < query
    return mask


def test_the_design_s_staircase() -> None:
    batch = collate([EXAMPLE], TOWERS)
    text, speech = batch.towers["text"], batch.towers["speech"]
    assert str(describe_cross(text, speech)).splitlines() == ["...."] * 4 + ["####"] * 3
    assert str(describe_cross(speech, text)).splitlines() == ["####..."] * 4
    assert str(describe_self(speech, causal=True)).splitlines() == ["#...", "##..", "###.", "####"]


@settings(max_examples=100)
@given(examples=EXAMPLES, multiple=st.sampled_from([1, 5]))
def test_cross_masks_are_one_comparison_a_staircase_and_a_loop(examples: list[list[Segment]], multiple: int) -> None:
    batch = collate(examples, TOWERS, multiple)
    for target_name, target in batch.towers.items():
        for source_name, source in batch.towers.items():
            if target_name == source_name:
                continue
            mask = cross_mask(target.order, source.visible)
            assert torch.equal(mask, loop(examples, target_name, source_name, tuple(mask.shape)))
            assert torch.equal(mask, describe_cross(target, source).dense())
            assert bool(mask.any()) == ((target_name, source_name) in batch.sees)


@settings(max_examples=100)
@given(examples=EXAMPLES, multiple=st.sampled_from([1, 5]))
def test_self_masks_are_a_staircase_and_a_loop(examples: list[list[Segment]], multiple: int) -> None:
    batch = collate(examples, TOWERS, multiple)
    for name, tower in batch.towers.items():
        causal = TOWERS[name].causal
        n_rows, length = tower.tokens.shape
        naive = loop(examples, name, name, (n_rows, length, length))
        assert torch.equal(describe_self(tower, causal).dense(), naive)
        dense = self_mask(tower, causal)
        if dense is None:
            # Plain causal attention says the same: padding stands behind every token.
            dense = torch.ones(length, length, dtype=torch.bool).tril().expand_as(naive)
        real = tower.order >= 0
        assert torch.equal(dense[real], naive[real])
        assert dense.any(dim=-1).all(), "no row is empty, padding included"


def test_documents_of_a_row_see_only_themselves() -> None:
    # Two documents: orders 0 to 2, and 3 to 5.
    order, start = torch.tensor([[0, 2, 3, 5, -1]]), torch.tensor([[0, 0, 3, 3, 0]])
    keys = torch.tensor([[1, 4, -1]])
    assert cross_mask(order, keys, start).int().tolist() == [[[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]]
    packed = replace(TowerBatch.alone(order), order=order, start=start, packed=True)
    mask = self_mask(packed, causal=True)
    assert mask is not None
    assert mask[0, :4, :4].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask.any(dim=-1).all(), "no row is empty, padding included"


def test_a_cache_is_seen_up_to_the_own_position() -> None:
    positions = torch.tensor([[0, 1], [3, 4]])
    assert cache_mask(positions, 5).int().tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    ]
