"""The ranks of a run: who they are, and what they tell each other.

One process by itself is a world of its own, in which every function gives back what it was given; it starts no process
group, and imports nothing of torch.distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from os import devnull
from pathlib import Path
from typing import Any, TypeVar
from warnings import filterwarnings

import torch
from torch import Tensor
from torch.nn.functional import pad

from zippkit.errors import ZippkitError
from zippkit.system.ranks import Ranks, ranks_of_environment

T = TypeVar("T")


class FollowedError(ZippkitError):
    """Another rank stopped, and says why."""


class _Sum(torch.autograd.Function):
    """A sum over ranks, of which each has a part of the loss."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.sum(own)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        return ctx.world.sum(outputs[0].contiguous()), None


class World:
    """All ranks, of which this process is one."""

    def __init__(self, ranks: Ranks | None = None, device: str = "cpu") -> None:
        """Name the ranks; where there are several, their process group must have been started.

        Args:
            ranks: this one among all.
            device: kind of device on which they compute.
        """
        ranks = ranks or Ranks()
        self.rank, self.size, self.leads, self.device = ranks.rank, ranks.size, ranks.leads, device

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size}"

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of what all of them do, in its order."""
        return items[self.rank :: self.size]

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over ranks of a tensor of one shape, on the host or the device; new where there are several."""
        if self.size == 1:
            return numbers
        import torch.distributed as dist

        total = numbers.detach().clone()
        dist.all_reduce(total)
        return total

    def rows(self, own: Tensor) -> Tensor:
        """The rows (B, ...) of all ranks, in the order of ranks; gradients go back to where a row came from."""
        if self.size == 1:
            return own
        counts = self.sum(torch.eye(self.size, dtype=torch.int64)[self.rank] * len(own)).tolist()
        before, behind = sum(counts[: self.rank]), sum(counts[self.rank + 1 :])
        there: Tensor = _Sum.apply(pad(own, (0, 0) * (own.dim() - 1) + (before, behind)), self)  # type: ignore[no-untyped-call]
        return there

    def sums(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sum numbers over ranks, by the names that all of them have."""
        total = self.sum(torch.tensor([float(number) for number in numbers.values()], dtype=torch.float64))
        return dict(zip(numbers, total.tolist(), strict=True))

    def gather(self, value: T) -> list[T]:
        """What each rank gives, a small thing, in the order of ranks."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def lead(self, act: Callable[[], T]) -> T:
        """Let the first rank do something while the others wait, and give all of them what came of it.

        Raises:
            Exception: what ``act`` raised.
            FollowedError: on the others, where it raised something.
        """
        if self.size == 1:
            return act()
        found: T | None = None
        with self.together():
            if self.leads:
                found = act()
        return self.gather(found)[0]  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Go on when all ranks have come to the end of the block; who fails in it stops all of them.

        Raises:
            FollowedError: another rank failed.
        """
        try:
            yield
        except Exception:
            self._tell(failed=True)
            raise
        self._tell(failed=False)

    def _tell(self, *, failed: bool) -> None:
        if self.size == 1:
            return
        flags = torch.zeros(self.size, dtype=torch.int64)
        flags[self.rank] = failed
        fallen = self.sum(flags).nonzero().flatten().tolist()
        if fallen and not failed:
            raise FollowedError(f"{self}: stopped, because rank {', '.join(map(str, fallen))} did; it says why")

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the first rank run the block before the others do, which find what it wrote.

        Raises:
            FollowedError: it failed.
        """
        if self.leads:
            with self.together():
                yield
            return
        self._tell(failed=False)
        yield


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """The ranks that torchrun started, or this process alone.

    The others' notices and progress are not shown: they would be the first one's again.

    Args:
        device: kind of device on which they compute, as ``cpu``.

    Raises:
        ZippkitError: an environment that is not torchrun's, or ranks that do not find each other.
    """
    ranks = ranks_of_environment()
    if ranks.size == 1:
        yield World(device=device)
        return
    import torch.distributed as dist

    if device != "cpu":
        torch.accelerator.set_device_index(ranks.local)
    own = dist.get_default_backend_for_device(device)
    try:
        dist.init_process_group("gloo" if device == "cpu" else f"cpu:gloo,{device}:{own}")
    except (ValueError, RuntimeError) as error:
        raise ZippkitError(f"rank {ranks.rank} of {ranks.size} does not find the others: {error}") from error
    try:
        # A link's memory is made of views, which nobody changes in place.
        filterwarnings("ignore", message="FSDP2-wrapped module")
        if ranks.leads:
            yield World(ranks, device)
        else:
            with Path(devnull).open("w") as nowhere, redirect_stderr(nowhere):
                yield World(ranks, device)
    finally:
        dist.destroy_process_group()
