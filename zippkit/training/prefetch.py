"""Batches that are made ahead, in the background, while the step before them runs.

One thread is enough, and a process would give nothing more: a batch is made by numpy, pyarrow and torch, which let go
of the interpreter where it takes long, and costs a small part of a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Generic, Self, TypeVar

Made = TypeVar("Made")

N_AHEAD = 2
"""Batches that are ready or under way."""


class Prefetch(Generic[Made]):
    """What ``make`` gives for each step, in the order of steps.

    Which steps those are, and what is made for each, does not depend on the thread: a run that is stopped and goes on
    makes the same again. What ``make`` raises is raised where its step is taken, not before.
    """

    def __init__(self, make: Callable[[int], Made], steps: Iterable[int]) -> None:
        """Prepare; nothing is made before ``with``.

        Args:
            make: called in the background, one step after the other.
            steps: all that may be taken, in order.
        """
        self._make, self._steps = make, iter(steps)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: deque[Future[Made]] = deque()

    def __enter__(self) -> Self:
        self._fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Forget what was not taken; a batch that is under way is finished first, so that no thread is left."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self) -> Made:
        """What was made for the next step; call it for no more steps than there are.

        Raises:
            Exception: what ``make`` raised for this step.
        """
        due = self._ahead.popleft()
        self._fill()
        return due.result()

    def _fill(self) -> None:
        for step in islice(self._steps, N_AHEAD - len(self._ahead)):
            self._ahead.append(self._pool.submit(self._make, step))
