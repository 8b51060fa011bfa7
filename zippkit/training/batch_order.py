"""The order of examples: a pure function of (seed, step), so that a run resumes exactly from two integers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Examples are sorted by length inside pools of this many batches: little padding, and still a fresh mix every epoch.
POOL = 32
ROUND = 1000
"""Steps in which tasks with shares of their own take turns, so that a share is met to a thousandth."""


class Draw(NamedTuple):
    """The examples of one batch."""

    task: int
    indices: tuple[int, ...]


class BatchOrder:
    """Batches of one task each, of similar lengths, each example of a task once per epoch of that task.

    The incomplete batch at the end of an epoch is left out; another shuffle brings its examples back. Tasks are mixed
    by data size, and then an epoch is one of all tasks; or by shares, and then each task has epochs of its own.
    """

    def __init__(
        self, lengths: Sequence[np.ndarray], batch_size: int, seed: int, shares: Sequence[float] | None = None
    ) -> None:
        """Prepare the order.

        Args:
            lengths: for each task, the length of each example in tokens.
            batch_size: examples per batch; a task with fewer examples gives one batch of all of them.
            seed: seed of the order.
            shares: for each task, its part of the steps, in any unit; by data size if left out.
        """
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._per_task = [max(1, len(task) // batch_size) for task in lengths]
        self._turns = None if shares is None else Turns(shares, seed)
        self.batches_per_epoch = sum(self._per_task)
        # Two epochs are enough to step across a border.
        self._epoch = lru_cache(maxsize=2)(self._order)
        self._own_epoch = lru_cache(maxsize=2 * len(lengths))(self._own_order)

    def draw(self, step: int) -> Draw:
        """The batch of a step (from 0)."""
        if self._turns is not None:
            task, before = self._turns.at(step)
            epoch, place = divmod(before, self._per_task[task])
            return self._own_epoch(task, epoch)[place]
        epoch, place = divmod(step, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    def _order(self, epoch: int) -> list[Draw]:
        random = np.random.default_rng((self._seed, epoch))
        draws = [draw for task in range(len(self._lengths)) for draw in self._batches(task, random)]
        return [draws[i] for i in random.permutation(len(draws))]

    def _own_order(self, task: int, epoch: int) -> list[Draw]:
        random = np.random.default_rng((self._seed, epoch, task))
        draws = self._batches(task, random)
        return [draws[i] for i in random.permutation(len(draws))]

    def _batches(self, task: int, random: np.random.Generator) -> list[Draw]:
        """An epoch of one task, pool after pool."""
        lengths, draws = self._lengths[task], list[Draw]()
        size = min(self._batch_size, len(lengths))
        order = random.permutation(len(lengths))[: self._per_task[task] * size]
        for start in range(0, len(order), POOL * size):
            pool = order[start : start + POOL * size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            draws += [Draw(task, tuple(batch.tolist())) for batch in pool.reshape(-1, size)]
        return draws


class Turns:
    """Which task's turn it is: each as often as its share says, spread evenly, in an order that the seed decides.

    A round is drawn by systematic sampling: the turns of a task are equally far apart in time, from an offset by
    chance. Of two tasks, the first n steps of a round hold each one's share to within one turn.
    """

    def __init__(self, shares: Sequence[float], seed: int) -> None:
        """Prepare the turns; ``shares`` are positive, in any unit."""
        self._seed = seed
        self.counts = rounded(shares, max(ROUND, len(shares)))
        """Turns of each task in a round."""
        self._round = lru_cache(maxsize=2)(self._drawn)

    def at(self, step: int) -> tuple[int, int]:
        """The task of a step (from 0), and how many turns it had before."""
        number, place = divmod(step, sum(self.counts))
        tasks, before = self._round(number)
        task = int(tasks[place])
        return task, number * self.counts[task] + int(before[place])

    def _drawn(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tasks of a round in order, and for each turn how many its task had before in this round."""
        offsets = np.random.default_rng((self._seed, number)).random(len(self.counts))
        tasks = np.repeat(np.arange(len(self.counts)), self.counts)
        turns = np.concatenate([np.arange(count) for count in self.counts])
        times = (turns + offsets[tasks]) / np.asarray(self.counts)[tasks]
        order = np.argsort(times, kind="stable")
        return tasks[order], turns[order]


def rounded(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to ``shares``, at least one each, whose sum is ``total`` (largest remainders)."""
    exact = np.asarray(shares, np.float64) / np.sum(shares) * total
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    while (left := total - int(counts.sum())) != 0:
        # Those that were lifted to one may have taken what others must give back.
        short = exact - counts if left > 0 else np.where(counts > 1, counts - exact, -np.inf)
        counts[np.argmax(short)] += 1 if left > 0 else -1
    return [int(count) for count in counts]
