"""Documents that share rows: who shares, and that each is in its row what it is apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.random_documents import EARED, compositions
from zippkit.batch.batch import Batch, Segment, TowerBatch
from zippkit.batch.collate import collate
from zippkit.batch.masks import cross_mask, self_mask
from zippkit.batch.packing import share_rows, share_rows_alike
from zippkit.plan.sequence_layout import SequenceLayout

LENGTHS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=12).map(np.array)


@settings(max_examples=100)
@given(lengths=LENGTHS, longest=st.integers(1, 80))
def test_rows_are_no_longer_than_asked(lengths: np.ndarray, longest: int) -> None:
    rows = share_rows(lengths, longest)
    loads = np.stack([lengths[rows == row].sum(axis=0) for row in range(rows.max() + 1)])
    assert loads.max() <= max(longest, lengths.max())
    assert len(loads) >= lengths.sum(axis=0).max() / max(longest, lengths.max(), 1)
    assert (share_rows(lengths, longest) == rows).all(), "a function of the lengths"
    firsts = [int((rows == row).argmax()) for row in range(len(loads))]
    assert firsts == sorted(firsts), "numbered by their first document"


def test_rows_are_alike_in_length() -> None:
    lengths = np.array([[9], [8], [7], [6], [5], [4]])
    assert sorted(lengths[share_rows(lengths, 20) == row].sum() for row in range(2)) == [19, 20]
    # One more row than the sum asks for, where nothing else fits.
    assert share_rows(np.array([[6], [6], [6]]), 10).tolist() == [0, 1, 2]


def test_kinds_stay_apart() -> None:
    rows = share_rows_alike(np.ones((5, 1), dtype=np.int64), 100, [True, False, True, False, False])
    assert rows.tolist() == [0, 1, 0, 1, 1]


def where(batch: Batch, tower: str) -> list[tuple[int, torch.Tensor]]:
    """For each row and document of a tower, the row and its places."""
    tokens = batch.towers[tower]
    found = []
    for row in range(batch.size):
        real = tokens.order[row] >= 0
        for start in tokens.start[row][real].unique().tolist():
            found.append((row, torch.nonzero(real & (tokens.start[row] == start))[:, 0]))
    return found


def own(tokens: TowerBatch, row: int, places: torch.Tensor) -> dict[str, list[int]]:
    """A document's columns, its orders and segments counted from its own first ones."""
    start = tokens.start[row, places][:1]
    moved = {"order": tokens.order[row, places] - start, "visible": tokens.visible[row, places] - start}
    same = ("tokens", "offset", "positions", "position_ids", "inserted", "targets")
    columns = moved | {name: getattr(tokens, name)[row, places] for name in same}
    if tokens.following is not None:
        columns["following"] = tokens.following[row, places]
    segments = tokens.segment[row, places]
    found = {name: column.tolist() for name, column in columns.items()}
    return found | {"segment": [list(dict.fromkeys(segments.tolist())).index(s) for s in segments.tolist()]}


@settings(max_examples=200)
@given(given=compositions(), pack=st.sampled_from([1, 12, 30, 1000]))
def test_a_document_is_in_its_row_what_it_is_apart(
    given: tuple[SequenceLayout, list[list[Segment]]], pack: int
) -> None:
    layout, documents = given
    if not all(documents):
        return
    apart = collate(documents, EARED, layout=layout)
    packed = collate(documents, EARED, layout=layout, pack=pack)
    assert packed.sees == apart.sees and packed.outputs == apart.outputs
    for name, tower in apart.towers.items():
        other = packed.towers[name]
        expected = [own(tower, *each) for each in where(apart, name)]
        found = [own(other, *each) for each in where(packed, name)]
        key = repr
        assert sorted(found, key=key) == sorted(expected, key=key)
        for row, places in where(packed, name):
            segments = other.segment[row, places]
            elsewhere = (other.start[row] != other.start[row, places][0]) & (other.order[row] >= 0)
            assert not np.isin(segments, other.segment[row][elsewhere]).any(), "segments are the row's, each its own"


@settings(max_examples=100)
@given(given=compositions(), pack=st.sampled_from([12, 1000]))
def test_nobody_sees_another_document(given: tuple[SequenceLayout, list[list[Segment]]], pack: int) -> None:
    layout, documents = given
    if not any(documents):
        return
    batch = collate(documents, EARED, layout=layout, pack=pack)
    apart = collate(documents, EARED, layout=layout)
    for name, target in batch.towers.items():
        for other, source in batch.towers.items():
            same = target.start[:, :, None] == source.start[:, None, :]
            if name != other:
                mask = cross_mask(target.order, source.visible, target.document_start)
                one = cross_mask(apart.towers[name].order, apart.towers[other].visible)
                assert int(mask.sum()) == int(one.sum())
            else:
                mine = self_mask(target, EARED[name].causal)
                real = (target.order >= 0)[:, :, None] & (target.order >= 0)[:, None, :]
                mask = real if mine is None else mine & real
            assert not (mask & ~same).any() or not target.packed


def test_rows_that_are_declared_otherwise_are_not_shared() -> None:
    one, two = [Segment("text", [1, 2])], [Segment("text", [3]), Segment("speech", [4])]
    batch = collate([one, two, one, two], EARED, multimodal=[False, True, False, True], pack=1000)
    assert isinstance(batch.multimodal, torch.Tensor)
    assert batch.multimodal.tolist() == [False, True]
    assert batch.towers["text"].packed


@pytest.mark.parametrize("pack", [None, 1])
def test_what_shares_no_row_is_as_it_was(pack: int | None) -> None:
    batch = collate([[Segment("text", [1, 2])], [Segment("text", [3])]], EARED, pack=pack)
    assert not batch.towers["text"].packed
    assert batch.towers["text"].positions.tolist() == [[0, 1, 2, 3]] * 2
    assert batch.towers["text"].document_start is None
