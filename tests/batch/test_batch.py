"""Segments to batches: the design's worked example, padding, targets, and data that does not fit its towers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.example_batch import EXAMPLE, SEGMENTS, TOWERS, A, B, C, columns, config
from zippkit.batch.batch import IGNORE, Segment, TowerBatch
from zippkit.batch.collate import collate
from zippkit.batch.columns import padded_length
from zippkit.errors import DataError
from zippkit.spec.kinds import TowerConfig


def test_the_design_s_example() -> None:
    """Section 4 of the design."""
    rows = columns(EXAMPLE, TOWERS)
    assert list(rows) == ["text", "speech"]
    text, speech = rows["text"], rows["speech"]
    assert text["tokens"] == [90, A, B, 91, 90, C, 91]
    assert text["order"] == [0, 1, 2, 3, 8, 9, 10]
    assert text["visible"] == text["order"]
    assert text["targets"] == [A, B, 91, IGNORE, C, 91, IGNORE]
    assert text["positions"] == [0, 1, 2, 3, 4, 5, 6]
    assert text["segment"] == [0, 0, 0, 0, 2, 2, 2]
    assert speech["tokens"] == [92, 7, 8, 93]
    assert speech["order"] == [4, 5, 6, 7]
    assert speech["targets"] == [7, 8, 93, IGNORE]
    assert speech["segment"] == [1, 1, 1, 1]


def test_a_tower_that_is_not_causal_is_visible_once_its_segment_is_complete() -> None:
    image = columns([Segment("text", [1]), Segment("image", [2, 3]), Segment("image", [4])], TOWERS)["image"]
    assert image["order"] == [3, 4, 5, 6, 7, 8, 9]
    assert image["visible"] == [6, 6, 6, 6, 9, 9, 9]


def test_padding() -> None:
    batch = collate([EXAMPLE, [Segment("speech", [1], loss=False)]], TOWERS, multiple=8)
    text, speech = batch.towers["text"], batch.towers["speech"]
    assert text.tokens.shape == speech.tokens.shape == (2, 8)
    for column, padding in (("order", -1), ("visible", -1), ("segment", -1), ("targets", IGNORE)):
        assert getattr(text, column)[0, 7] == padding
        assert (getattr(text, column)[1] == padding).all(), "a row without text"
    assert text.tokens[0].tolist() == [90, A, B, 91, 90, C, 91, 91], "padding repeats the end id"
    assert text.positions.tolist() == [list(range(8))] * 2, "padding counts on"
    assert speech.targets[1].tolist() == [IGNORE] * 8, "no loss was asked"
    assert batch.outputs == ("text", "speech")
    assert batch.size == 2
    assert batch.n_tokens == 7 + 4 + 3


@pytest.mark.parametrize(
    ("declared", "multimodal"),
    [(True, True), (False, False), ([True, True], True), ([False, True], [False, True])],
)
def test_whether_a_row_is_multimodal_is_declared(declared: bool | list[bool], multimodal: bool | list[bool]) -> None:
    rows = [[EXAMPLE[0]], [EXAMPLE[0], EXAMPLE[2]]]
    found = collate(rows, TOWERS, multimodal=declared).multimodal
    assert (found.tolist() if isinstance(found, torch.Tensor) else found) == multimodal
    assert collate(rows, TOWERS).multimodal is True, "and never derived from the segments"


def test_declarations_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"example utt7: declared unimodal .* segments of speech and text"):
        collate([[EXAMPLE[0]], EXAMPLE], TOWERS, ids=["a", "utt7"], multimodal=False)
    with pytest.raises(DataError, match="expected one declaration for each of 1 rows, got 2"):
        collate([EXAMPLE], TOWERS, multimodal=[True, True])


def test_outputs_and_towers_stand_in_spec_order() -> None:
    batch = collate([[Segment("image", [1]), Segment("speech", [1]), Segment("text", [1], loss=False)]], TOWERS)
    assert list(batch.towers) == ["text", "speech", "image"]
    assert batch.outputs == ("speech", "image")


@pytest.mark.parametrize(
    "tokens", [[1, 2], (1, 2), np.array([1, 2]), np.array([1, 2], "uint16"), torch.tensor([1, 2]), range(1, 3)]
)
def test_tokens_may_be_any_run_of_whole_numbers(tokens: Any) -> None:
    assert columns([Segment("text", tokens)], TOWERS)["text"]["tokens"] == [90, 1, 2, 91]


def test_a_segment_may_be_empty() -> None:
    row = columns([Segment("text", [])], TOWERS)["text"]
    assert row["tokens"] == [90, 91]
    assert row["targets"] == [91, IGNORE]


@pytest.mark.parametrize(
    ("segments", "told"),
    [
        ([Segment("txt", [1])], "segment 0: no tower is called 'txt'; did you mean 'text'?"),
        ([EXAMPLE[0], Segment("speech", [1, 100])], "segment 1 (speech): token 100 is outside the vocabulary of 100"),
        ([Segment("text", [3, -1])], "segment 0 (text): token -1 is outside the vocabulary of 100"),
        ([Segment("text", [1.5])], "segment 0 (text): expected a run of whole numbers as tokens"),
        ([Segment("text", np.array([0.5]))], "segment 0 (text): expected a run of whole numbers as tokens"),
        ([Segment("text", [[1, 2]])], "segment 0 (text): expected a run of whole numbers as tokens"),
        ([Segment("text", torch.zeros(1, 2, dtype=torch.long))], "segment 0 (text): expected a run of whole numbers"),
        ([Segment("text", torch.tensor(3))], "segment 0 (text): expected a run of whole numbers as tokens"),
        ([Segment("text", "hello")], "segment 0 (text): expected a run of whole numbers as tokens"),
        ([Segment("text", None)], "segment 0 (text): expected a run of whole numbers as tokens"),
    ],
)
def test_segments_that_do_not_fit(segments: list[Segment], told: str) -> None:
    with pytest.raises(DataError) as caught:
        collate([EXAMPLE, segments], TOWERS, ids=["a", "utt7"])
    assert str(caught.value).startswith(f"example utt7: {told}")


def test_too_long_and_too_little() -> None:
    towers = TOWERS | {"text": config(90, 91, max_len=7)}
    assert collate([EXAMPLE], towers).towers["text"].tokens.shape == (1, 7)
    with pytest.raises(DataError, match="example 1: 9 text tokens; the tower takes at most 7"):
        collate([EXAMPLE, [*EXAMPLE, Segment("text", [])]], towers)
    with pytest.raises(DataError, match="a batch needs at least one segment"):
        collate([[], []], TOWERS)
    with pytest.raises(DataError, match=r"segment 0 \(text\): the tower has no frame"):
        collate([EXAMPLE], TOWERS | {"text": TowerConfig(dim=4, n_layers=1)})


def test_buckets() -> None:
    assert [padded_length(n, 16) for n in (1, 15, 16, 17)] == [16, 16, 16, 32]


def tokens_of(batch: TowerBatch, row: int) -> list[int]:
    return batch.tokens[row][batch.order[row] >= 0].tolist()


@settings(max_examples=100)
@given(examples=st.lists(SEGMENTS, min_size=1, max_size=3).filter(any), multiple=st.sampled_from([1, 4]))
def test_nothing_is_lost_and_nothing_is_predicted_across_segments(examples: list[list[Segment]], multiple: int) -> None:
    batch = collate(examples, TOWERS, multiple)
    for name, tower in batch.towers.items():
        assert tower.tokens.shape[1] % multiple == 0
        begin, end = TOWERS[name].frame.begin, TOWERS[name].frame.end
        for row, segments in enumerate(examples):
            own = [[begin, *segment.tokens, end] for segment in segments if segment.tower == name]
            assert tokens_of(tower, row) == [token for run in own for token in run]
            asked = [
                [*s.tokens, end, IGNORE] if s.loss else [IGNORE] * (len(s.tokens) + 2)
                for s in segments
                if s.tower == name
            ]
            told = [token for run in asked for token in run]
            assert tower.targets[row].tolist() == told + [IGNORE] * (tower.tokens.shape[1] - len(told))
    for row, segments in enumerate(examples):
        orders = torch.cat([tower.order[row] for tower in batch.towers.values()])
        n_tokens = sum(len(segment.tokens) + 2 for segment in segments)
        assert sorted(orders[orders >= 0].tolist()) == list(range(n_tokens)), "each place is taken once, across towers"


@settings(max_examples=100)
@given(examples=st.lists(SEGMENTS, min_size=1, max_size=3).filter(any))
def test_who_sees_whom(examples: list[list[Segment]]) -> None:
    """(target, source) pairs by a look at every pair of segments."""
    naive = {
        (after.tower, before.tower)
        for segments in examples
        for i, after in enumerate(segments)
        for before in segments[:i]
        if after.tower != before.tower
    }
    assert collate(examples, TOWERS).sees == naive


def test_moving_a_batch_keeps_everything() -> None:
    batch = collate([EXAMPLE, [EXAMPLE[0]]], TOWERS, multimodal=[True, False])
    moved = batch.to("meta")
    assert moved.towers["text"].tokens.device.type == "meta"
    assert isinstance(moved.multimodal, torch.Tensor)
    assert moved.multimodal.device.type == "meta"
    assert (moved.outputs, moved.sees) == (batch.outputs, batch.sees)
