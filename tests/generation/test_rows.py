"""Rows own their state: a hypothesis that branches off leaves its parent as it was, and resting rows are padded."""

from __future__ import annotations

import torch

from helpers.greedy import two
from zippkit.batch.batch import Segment
from zippkit.generation.api import stream
from zippkit.generation.new_tokens import next_tokens
from zippkit.generation.row_batch import RowBatch
from zippkit.spec.sampling import Sampling


def begun(sampling: Sampling | None = None) -> RowBatch:
    """Two rows behind their prompts, at the begin of a segment of text."""
    prompts = [[Segment("speech", [1, 2])], [Segment("text", [3])]]
    return stream(two(), prompts, ["text"], 4, sampling or Sampling()).batch


def test_a_branch_changes_nothing_of_the_rows_that_it_left() -> None:
    batch = begun(Sampling(repetition_penalty=2.0))
    parent = batch.rows[0]
    parent.seen_ids("text", 8)
    branched = batch.branch("text", [0, 0, 1], same_rows=False)
    assert [row.number for row in branched.rows] == [0, 1, 2]
    child = branched.rows[1]
    child.mark_seen("text", 5)
    child.positions["text"] += 1
    child.order += 1
    assert not parent.seen["text"][5] and child.seen["text"][5]
    assert (parent.positions["text"], parent.order) == (0, child.order - 1)
    before = dict(batch.decoding.n_slots)
    branched.decoding.reserve("text", 9)
    assert batch.decoding.n_slots == before


def test_a_resting_row_sees_nothing_and_is_seen_by_nobody() -> None:
    batch = begun()
    tokens = batch.tower_batch("text", {1: next_tokens(batch.rows[1], [6, 2])})
    assert tokens.tokens.tolist() == [[0, 0], [6, 2]]
    assert tokens.order.tolist() == tokens.visible.tolist() == [[-1, -1], [3, 4]]
    assert tokens.positions.tolist() == [[0, 1], [3, 4]]
    assert tokens.segment.tolist() == [[-1, -1], [1, 1]]


def test_a_row_ends_at_its_limit_and_where_it_is_cancelled() -> None:
    row = begun().rows[0]
    assert row.limit == 4
    row.step = 1
    assert [piece.token for piece in row.take([5])] == [5]
    assert (row.ahead, row.ending) == ([[5]], False)
    row.step = 4
    assert [piece.token for piece in row.take([4])] == [4, None]
    assert (row.ahead, row.ending) == ([[4], [7]], True)
    row.cancel()
    assert not row.turns
    assert row.segments == [Segment("text", [5, 4])]


def test_only_a_penalty_keeps_what_was_seen() -> None:
    for sampling, kept in ((Sampling(), False), (Sampling(repetition_penalty=2.0), True)):
        batch = begun(sampling)
        own, seen = batch.own_logits("text", torch.zeros(2, 8))
        assert own.shape == (2, 8) and (seen is not None) == kept == bool(batch.rows[0].seen)
