"""Batches made ahead: in order, no more than asked for, errors where they are due, and no thread that is left."""

from __future__ import annotations

import threading

import pytest

from zippkit.errors import DataError
from zippkit.training.prefetch import N_AHEAD, Prefetch


def test_steps_come_in_order_from_another_thread() -> None:
    made: list[int] = []

    def make(step: int) -> tuple[int, str]:
        made.append(step)
        return step, threading.current_thread().name

    with Prefetch(make, range(3, 8)) as batches:
        taken = [batches.take() for _ in range(5)]
    assert [step for step, _ in taken] == made == [3, 4, 5, 6, 7]
    assert all(name.startswith("batches") for _, name in taken)


def test_the_next_is_made_before_it_is_asked_for() -> None:
    begun = [threading.Event() for _ in range(4)]

    def make(step: int) -> int:
        begun[step].set()
        return step

    with Prefetch(make, range(4)) as batches:
        assert begun[N_AHEAD - 1].wait(10), "without a call of take"
        assert not begun[N_AHEAD].wait(0.05), "and no more than that"
        assert batches.take() == 0
        assert begun[N_AHEAD].wait(10)


def test_an_error_is_raised_where_its_step_is_due() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise DataError("example utt7: segment 0 (text): token 100 is outside the vocabulary of 100")
        return step

    with Prefetch(make, range(5)) as batches:
        assert [batches.take(), batches.take()] == [0, 1]
        with pytest.raises(DataError, match="example utt7"):
            batches.take()
        assert batches.take() == 3


def test_leaving_in_the_middle_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Prefetch(lambda step: step, range(1000)) as batches:
        batches.take()
        raise KeyboardInterrupt
    assert threading.active_count() == before
