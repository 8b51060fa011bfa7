"""Batches made with arrays against the same, token by token, in plain Python: equal in every column."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from numpy.typing import NDArray

from helpers import naive_collate
from helpers.example_batch import TOWERS, Whole, config
from zippkit.batch.batch import Batch, Features, Segment
from zippkit.batch.collate import collate
from zippkit.errors import DataError
from zippkit.plan.sequence_layout import Insert, Modality, SequenceLayout, turns
from zippkit.spec.kinds import Frame


class Ear(Whole):
    """A tower that is fed with frames of three floats, of which two make a state."""

    continuous: ClassVar[bool] = True

    def n_states(self, values: NDArray[np.float32]) -> int:
        if values.ndim != 2 or len(values) < 2:
            raise ValueError(f"expected two frames or more, got {values.shape}")
        return len(values) // 2


EARED = TOWERS | {"ear": Ear(dim=4, n_layers=1)}
INSERTS = (
    Insert("speech", "text", lambda n: -(-n // 2)),
    Insert("speech", "text", lambda n: 1),
    Insert("image", "text", lambda n: 2),
    Insert("ear", "speech", lambda n: n),
    Insert("ear", "text", lambda n: 1),
)
LAYOUTS = st.builds(
    SequenceLayout,
    inserts=st.lists(st.sampled_from(INSERTS), max_size=3, unique=True).map(tuple),
    clocks=st.sampled_from([frozenset(), frozenset({frozenset(("text", "speech"))})]),
    shared=st.sampled_from([frozenset[str](), frozenset(("text", "speech"))]),
    hosted=st.sampled_from([{}, {"units": Modality("text", 100, 12, Frame(begin=10, end=11))}]),
    tells_next=st.booleans(),
)
DESCRIBED = ("stairs", "own_stairs", "shared")
"""Made of the columns (`zippkit.batch.describe`)."""
KINDS: list[Any] = [list, tuple, np.array, torch.tensor, lambda ids: np.array(ids, "uint16"), lambda ids: ids]


@st.composite
def segment(draw: DrawFn, name: str, n: int) -> Segment:
    if name == "ear":
        frames = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(n + 2, 3))
        return Segment(name, frames, draw(st.booleans()))
    ids = draw(st.lists(st.integers(0, 9 if name == "units" else 89), min_size=n, max_size=n))
    return Segment(name, draw(st.sampled_from(KINDS))(ids), draw(st.booleans()))


@st.composite
def compositions(draw: DrawFn) -> tuple[SequenceLayout, list[list[Segment]]]:
    """A layout, and documents that it can lay out."""
    layout = draw(LAYOUTS)
    known = sorted(layout.modalities(EARED))
    documents = []
    for _ in range(draw(st.integers(1, 4))):
        names = draw(st.lists(st.sampled_from(known), max_size=6))
        taken = [(turn, draw(st.integers(0, 5))) for turn in turns(names, layout)]
        documents.append([draw(segment(name, n)) for turn, n in taken for name in turn])
    return layout, documents


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
