"""The order of examples: a pure function of (seed, step), every example once per epoch, alike in length."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from zippkit.training.batch_order import BatchOrder

SIZES = st.lists(st.integers(1, 70), min_size=1, max_size=3)


def lengths(sizes: list[int], seed: int = 0) -> list[NDArray[np.int64]]:
    numbers = np.random.default_rng(seed)
    return [numbers.integers(1, 200, size) for size in sizes]


@given(SIZES, st.integers(1, 20), st.integers(0, 2**63 - 1), st.lists(st.integers(0, 300), max_size=20))
def test_a_draw_depends_on_seed_and_step_alone(sizes: list[int], batch_size: int, seed: int, steps: list[int]) -> None:
    first, second = (BatchOrder(lengths(sizes), batch_size, seed) for _ in range(2))
    in_order = {step: first.draw(step) for step in range(301)}
    assert [second.draw(step) for step in steps] == [in_order[step] for step in steps]
    assert in_order[7] == first.draw(7)


@given(SIZES, st.integers(1, 20), st.integers(0, 99), st.integers(0, 5))
def test_an_epoch_holds_every_example_once_but_for_the_incomplete_batch(
    sizes: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    order = BatchOrder(lengths(sizes), batch_size, seed)
    n = order.batches_per_epoch
    draws = [order.draw(step) for step in range(epoch * n, (epoch + 1) * n)]
    for task, size in enumerate(sizes):
        batches = [draw.indices for draw in draws if draw.task == task]
        # Tasks are mixed in proportion to their size, in whole batches.
        assert len(batches) == max(1, size // batch_size)
        assert {len(batch) for batch in batches} == {min(batch_size, size)}
        seen = Counter(index for batch in batches for index in batch)
        assert max(seen.values()) == 1
        assert set(seen) <= set(range(size))
        assert size - len(seen) < batch_size


def test_what_an_epoch_leaves_out_comes_in_another() -> None:
    order = BatchOrder(lengths([19]), 10, 0)
    assert order.batches_per_epoch == 1
    assert {index for step in range(20) for index in order.draw(step).indices} == set(range(19))


def test_seeds_and_epochs_differ() -> None:
    seeded = [BatchOrder(lengths([64, 64]), 8, seed) for seed in (0, 1)]
    n = seeded[0].batches_per_epoch
    orders = [[s.draw(step) for step in range(epoch * n, epoch * n + n)] for s in seeded for epoch in range(2)]
    assert len({tuple(order) for order in orders}) == 4


def test_tasks_take_turns_in_no_fixed_order() -> None:
    order = BatchOrder(lengths([400, 400]), 4, 0)
    tasks = [order.draw(step).task for step in range(200)]
    n_changes = sum(a != b for a, b in pairwise(tasks))
    assert 70 < n_changes < 130, "about half of the steps, where a coin decides"


@given(st.integers(0, 50))
def test_batches_are_alike_in_length(seed: int) -> None:
    (task,) = lengths([500], seed)
    order = BatchOrder([task], 10, seed)

    def padding(batches: list[NDArray[np.int64]]) -> float:
        return 1 - sum(batch.sum() for batch in batches) / sum(batch.max() * len(batch) for batch in batches)

    drawn = [task[list(order.draw(step).indices)] for step in range(order.batches_per_epoch)]
    shuffled = list(np.random.default_rng(seed).permutation(task).reshape(-1, 10))
    assert padding(drawn) < 0.1 < padding(shuffled)


def test_batches_do_not_come_sorted() -> None:
    (task,) = lengths([320])
    order = BatchOrder([task], 10, 0)
    longest = [max(task[list(order.draw(step).indices)]) for step in range(32)]
    assert sum(a < b for a, b in pairwise(longest)) < 24
