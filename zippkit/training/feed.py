"""The batches of a phase's steps: which examples each holds, made ahead, and brought to one plan on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zippkit.batch.batch import Batch
from zippkit.composition import Composition
from zippkit.model.loss import Share
from zippkit.spec.phase import Phase
from zippkit.training.agreement import agree, shares, with_targets_placed
from zippkit.training.mixture import Mixture
from zippkit.training.parallel import World
from zippkit.training.prefetch import Prefetch
from zippkit.training.source_cache import SourceCache
from zippkit.training.task_data import TaskData


class Fed(NamedTuple):
    """What a step is given."""

    batches: list[Batch]
    shares: list[Share | None]
    """What each of them is of the step of all ranks; empty in one process, where the step sees to it."""
    stop: bool
    """Whether the step is to be the last for now."""


class Feed:
    """The examples of each step in parts, of which this rank has its own."""

    def __init__(
        self,
        zipped: Composition,
        phase: Phase,
        learnt: Mixture,
        seed: int,
        world: World,
        cache: SourceCache | None,
        static: bool = False,
    ) -> None:
        self.zipped, self.phase, self.world, self.cache = zipped, phase, world, cache
        self.tasks = learnt.parts
        self._places_multiple = 256 if phase.compile or static else 1
        """Few shapes where each is compiled."""
        self.order = learnt.order(phase.batch_size, seed)

    def make(self, step: int) -> list[Batch | None]:
        """This rank's batches of a step, and None where others have all rows of one; may run in another thread."""
        draw = self.order.draw(step)
        n_parts = min(self.phase.accumulate, len(draw.indices))
        parts = [self.world.mine(part.tolist()) for part in np.array_split(draw.indices, n_parts)]
        return [self._batch(self.tasks[draw.task], part) if part else None for part in parts]

    def take(self, ahead: Prefetch[list[Batch | None]], stop: bool) -> Fed:
        """The next step's batches, on the host.

        Args:
            ahead: what `make` gave.
            stop: whether this rank was asked to stop.

        Raises:
            FollowedError: another rank could not make its own.
        """
        if self.world.size == 1:
            return Fed([self._completed(batch) for batch in ahead.take() if batch], [], stop)
        with self.world.together():
            made = ahead.take()
        batches, stop = agree(self.world, self.zipped.graph, made, stop)
        # Rows of a part may ask for no loss, and a step of nothing else is told as what it is.
        batches = [batch for batch in batches if batch.outputs] or batches[:1]
        with self.world.together():
            batches = [self._completed(with_targets_placed(batch, self._places_multiple)) for batch in batches]
        return Fed(batches, shares(self.world, self.zipped.model, batches), stop)

    def ids(self, step: int) -> str:
        """The names of a step's examples."""
        draw = self.order.draw(step)
        return ", ".join(self.tasks[draw.task].ids(draw.indices))

    def _batch(self, task: TaskData, indices: Sequence[int]) -> Batch:
        examples = [task.segments(i) for i in indices]
        ids, phase = task.ids(indices), self.phase
        batch = self.zipped.collate(examples, phase.pad_multiple, ids, task.task.multimodal, phase.packs_to)
        # What is to be read follows from what all ranks run.
        if self.cache is None or self.world.size > 1:
            return batch.with_places(self._places_multiple)
        return self.cache.read(batch).with_places(self._places_multiple)

    def _completed(self, batch: Batch) -> Batch:
        return batch if self.cache is None else self.cache.complete(batch)
