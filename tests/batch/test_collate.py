"""Batches made with arrays against the same, token by token, in plain Python: equal in every column."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import naive_collate
from helpers.example_batch import TOWERS, config
from helpers.random_documents import EARED, compositions
from zippkit.batch.batch import Batch, Features, Segment
from zippkit.batch.collate import collate
from zippkit.batch.describe import describe_cross, describe_self
from zippkit.errors import DataError
from zippkit.plan.sequence_layout import Modality, SequenceLayout
from zippkit.spec.kinds import Frame

DESCRIBED = ("stairs", "own_stairs", "shared")
"""Not among the columns; the staircases have a test of their own."""


def differing(one: Any, other: Any, where: str = "batch") -> list[str]:
    """Where two batches differ: values, shapes, dtypes."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [f"{where}: {one} is not {other}"]
    if isinstance(one, Batch | Features) or hasattr(one, "position_ids"):
        names = [field.name for field in fields(one) if field.name not in DESCRIBED]
        return [d for name in names for d in differing(getattr(one, name), getattr(other, name), f"{where}.{name}")]
    if isinstance(one, dict):
        assert list(one) == list(other)
        return [d for name in one for d in differing(one[name], other[name], f"{where}.{name}")]
    return [] if one == other else [f"{where}: {one} is not {other}"]


@settings(max_examples=300)
@given(given=compositions(), multiple=st.sampled_from([1, 4]))
def test_every_column_is_what_a_loop_over_tokens_gives(
    given: tuple[SequenceLayout, list[list[Segment]]], multiple: int
) -> None:
    layout, documents = given
    if not any(documents):
        return
    expected = naive_collate.collate(documents, EARED, multiple, layout=layout)
    assert differing(collate(documents, EARED, multiple, layout=layout), expected) == []


@settings(max_examples=300)
@given(given=compositions(), multiple=st.sampled_from([1, 4]), pack=st.sampled_from([None, 1, 30]))
def test_every_staircase_is_what_the_columns_tell(
    given: tuple[SequenceLayout, list[list[Segment]]], multiple: int, pack: int | None
) -> None:
    layout, documents = given
    if not any(documents):
        return
    batch = collate(documents, EARED, multiple, layout=layout, pack=pack)
    for name, tower in batch.towers.items():
        expected = {s: describe_cross(tower, batch.towers[s]) for t, s in sorted(batch.sees) if t == name}
        assert list(tower.stairs) == list(expected)
        assert tower.own_stairs is not None
        found = [tower.own_stairs, *tower.stairs.values()]
        for one, other in zip(found, [describe_self(tower, EARED[name].causal), *expected.values()], strict=True):
            assert np.array_equal(one.steps, other.steps) and one.steps.dtype == other.steps.dtype
            assert (one.n_rows, one.n_queries, one.n_keys) == (other.n_rows, other.n_queries, other.n_keys)


@pytest.mark.parametrize(
    ("segments", "told"),
    [
        ([Segment("text", np.array([3, 2**63 + 5], dtype=np.uint64))], r"segment 0 \(text\): token .* is outside"),
        ([Segment("text", [3, 2**70])], r"segment 0 \(text\): expected a run of whole numbers"),
        ([Segment("text", [[1], [2, 3]])], r"segment 0 \(text\): expected a run of whole numbers"),
        ([Segment("text", [1]), Segment("ear", [[1.0, 2.0]])], r"segment 1 \(ear\): expected two frames"),
        ([Segment("text", [1]), Segment("ear", ["a"])], r"segment 1 \(ear\): could not convert"),
        ([Segment("units", [11]), Segment("text", [100])], r"segment 1 \(text\): token 100 is outside .* of 100"),
        ([Segment("text", [11]), Segment("units", [12])], r"segment 1 \(units\): token 12 is outside .* of 12"),
    ],
)
def test_what_does_not_fit_is_named(segments: list[Segment], told: str) -> None:
    layout = SequenceLayout(hosted={"units": Modality("text", 100, 12, Frame(begin=10, end=11))})
    with pytest.raises(DataError, match="example b: " + told):
        collate([[Segment("text", [1])], segments], EARED, ids=["a", "b"], layout=layout)


def test_the_longest_of_all_documents_is_told_whole() -> None:
    towers = TOWERS | {"text": config(90, 91, max_len=7)}
    long = [Segment("text", [1, 2]), Segment("text", [1]), Segment("text", [1])]
    with pytest.raises(DataError, match="example 1: 10 text tokens; the tower takes at most 7"):
        collate([long[:2], long], towers)
