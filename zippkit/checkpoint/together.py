"""The ranks that write or read one checkpoint, and what they tell each other while they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from zippkit.errors import ZippkitError
from zippkit.system.files import appearing, writing

T = TypeVar("T")


@dataclass(frozen=True)
class Together:
    """A rank among all that save and load together; by itself, the only one."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """Of their own, on the host, so that a save in the background never meets what a step tells."""

    @classmethod
    def of_all(cls) -> Together:
        """All ranks of this run, each of which must ask for it at the same moment."""
        from torch import distributed

        if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
            return cls()
        group = distributed.new_group(backend="gloo")
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    def each(self, do: Callable[[], T]) -> list[T]:
        """What every rank's ``do`` gives, in order.

        Raises:
            ZippkitError: it failed on some rank, on all of which it is an error then.
        """
        if self.size == 1:
            return [do()]
        mine: Exception | None = None
        given: T | None = None
        try:
            given = do()
        except Exception as error:
            mine = error
        told: list[Any] = [None] * self.size
        from torch import distributed

        said = "" if mine is None else str(mine) or type(mine).__name__
        distributed.all_gather_object(told, (given, said), group=self.group)
        if mine is not None:
            raise mine
        failed = {rank: text for rank, (_, text) in enumerate(told) if text}
        if failed:
            rank, text = next(iter(failed.items()))
            raise ZippkitError(f"rank {rank}: {text}")
        return [each for each, _ in told]

    def first(self, do: Callable[[], T]) -> T:
        """What the first rank's ``do`` gives, which alone does it; raises as `each`."""
        return cast("T", self.each(lambda: do() if self.rank == 0 else None)[0])

    @contextmanager
    def appearing(self, target: Path) -> Iterator[Path]:
        """`zippkit.system.files.appearing`, for all ranks at once; the first one renames it in the end."""
        with writing(target), ExitStack() as stack:
            yield self.first(lambda: stack.enter_context(appearing(target)))
            self.first(stack.close)


ALONE = Together()
"""One process."""
