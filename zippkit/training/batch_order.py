"""The order of examples: a pure function of (seed, step), so that a run resumes exactly from two integers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# Examples are sorted by length inside pools of this many batches: little padding, and still a fresh mix every epoch.
POOL = 32


class Draw(NamedTuple):
    """The examples of one batch."""

    task: int
    indices: tuple[int, ...]


class BatchOrder:
    """Batches of one task each, mixed by data size, of similar lengths, each example once per epoch.

    The incomplete batch at the end of an epoch is left out; another shuffle brings its examples back.
    """

    def __init__(self, lengths: Sequence[np.ndarray], batch_size: int, seed: int) -> None:
        """Prepare the order.

        Args:
            lengths: for each task, the length of each example in tokens.
            batch_size: examples per batch; a task with fewer examples gives one batch of all of them.
            seed: seed of the order.
        """
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._per_task = [max(1, len(task) // batch_size) for task in lengths]
        self.batches_per_epoch = sum(self._per_task)
        # Two epochs are enough to step across a border.
        self._epoch = lru_cache(maxsize=2)(self._order)

    def draw(self, step: int) -> Draw:
        """The batch of a step (from 0)."""
        epoch, place = divmod(step, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    def _order(self, epoch: int) -> list[Draw]:
        random = np.random.default_rng((self._seed, epoch))
        draws: list[Draw] = []
        for task, lengths in enumerate(self._lengths):
            size = min(self._batch_size, len(lengths))
            order = random.permutation(len(lengths))[: self._per_task[task] * size]
            for start in range(0, len(order), POOL * size):
                pool = order[start : start + POOL * size]
                pool = pool[np.argsort(lengths[pool], kind="stable")]
                draws += [Draw(task, tuple(batch.tolist())) for batch in pool.reshape(-1, size)]
        return [draws[i] for i in random.permutation(len(draws))]
