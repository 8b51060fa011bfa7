"""The order of examples: a pure function of (seed, step), every example once per epoch, alike in length."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from zippkit.training.batch_order import POOL, ROUND, BatchOrder, Draw, Turns, rounded

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


def plain_order(lengths: list[NDArray[np.int64]], batch_size: int, seed: int, step: int) -> Draw:
    """The order as it was before there were shares, one epoch written out."""
    per_task = [max(1, len(task) // batch_size) for task in lengths]
    epoch, place = divmod(step, sum(per_task))
    random = np.random.default_rng((seed, epoch))
    draws = []
    for task, size in enumerate(lengths):
        n = min(batch_size, len(size))
        order = random.permutation(len(size))[: per_task[task] * n]
        for start in range(0, len(order), POOL * n):
            pool = order[start : start + POOL * n]
            pool = pool[np.argsort(size[pool], kind="stable")]
            draws += [Draw(task, tuple(batch.tolist())) for batch in pool.reshape(-1, n)]
    return draws[random.permutation(len(draws))[place]]


@given(SIZES, st.integers(1, 9), st.integers(0, 99), st.integers(0, 100))
def test_without_shares_the_order_is_what_it_was(sizes: list[int], batch_size: int, seed: int, step: int) -> None:
    made = lengths(sizes)
    assert BatchOrder(made, batch_size, seed).draw(step) == plain_order(made, batch_size, seed, step)


SHARES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


@given(SHARES, st.integers(6, 2000))
def test_shares_are_rounded_to_whole_turns(shares: list[float], total: int) -> None:
    counts = rounded(shares, total)
    assert sum(counts) == total
    assert min(counts) >= 1
    exact = [share / sum(shares) * total for share in shares]
    n_lifted = sum(each < 1 for each in exact)
    assert all(abs(count - each) < 1 + n_lifted for count, each in zip(counts, exact, strict=True))


@given(SHARES, st.integers(0, 99), st.lists(st.integers(0, 3 * ROUND), max_size=8))
def test_turns_are_a_function_of_seed_and_step(shares: list[float], seed: int, steps: list[int]) -> None:
    turns = Turns(shares, seed)
    seen: Counter[int] = Counter()
    in_order = []
    for _ in range(3 * ROUND + 1):
        task, before = turns.at(len(in_order))
        assert before == seen[task], "how many turns the task had"
        seen[task] += 1
        in_order.append((task, before))
    again = Turns(shares, seed)
    assert [again.at(step) for step in steps] == [in_order[step] for step in steps]


@given(st.floats(0.02, 0.98), st.integers(0, 99))
def test_two_tasks_have_their_shares_at_any_time(share: float, seed: int) -> None:
    turns = Turns([share, 1 - share], seed)
    first = turns.counts[0] / ROUND
    assert abs(first - share) < 1 / ROUND
    tasks = [turns.at(step)[0] for step in range(2 * ROUND)]
    n_first = np.cumsum(np.array(tasks) == 0)
    assert np.abs(n_first - first * np.arange(1, 2 * ROUND + 1)).max() <= 1.01


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 7), st.integers(0, 99))
def test_with_shares_each_task_has_epochs_of_its_own(sizes: list[int], batch_size: int, seed: int) -> None:
    order = BatchOrder(lengths(sizes), batch_size, seed, [1.0 + i for i in range(len(sizes))])
    draws: dict[int, list[tuple[int, ...]]] = {}
    for step in range(400):
        draw = order.draw(step)
        draws.setdefault(draw.task, []).append(draw.indices)
    for task, size in enumerate(sizes):
        n = max(1, size // batch_size)
        for start in range(0, len(draws[task]) - n + 1, n):
            seen = [index for batch in draws[task][start : start + n] for index in batch]
            assert len(seen) == len(set(seen)) == n * min(batch_size, size), "each example at most once in an epoch"


def test_seeds_turn_differently() -> None:
    one, other = (Turns([1.0, 1.26], seed) for seed in (0, 1))
    assert [one.at(step) for step in range(50)] != [other.at(step) for step in range(50)]
