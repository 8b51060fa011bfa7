"""Where a part of `benchmarks/gpu.py` runs: its device, its sizes, and how its times are taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from zippkit.report.hardware import recognised
from zippkit.training.backends import CPU, Accelerator, Backend

Row = dict[str, Any]
"""One line of a part's table: `case`, then figures; `problem` instead of figures where a case failed."""


@dataclass(frozen=True)
class Place:
    """A device at real sizes, or the CPU at a toy size."""

    toy: bool
    repeats: int = 5

    @property
    def device(self) -> str:
        return "cpu" if self.toy else "cuda"

    @property
    def name(self) -> str:
        return "toy size on a CPU" if self.toy else torch.cuda.get_device_name()

    def backend(self, graphs: bool = False) -> Backend:
        """The device of a training step; its compiled functions run as CUDA graphs if asked."""
        if self.toy:
            return _Toy()
        return _Graphed("cuda") if graphs else Accelerator("cuda")

    def sync(self) -> None:
        if not self.toy:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], repeats: int | None = None, warm: int = 3) -> float:
        """Median seconds of one call, everything that it started included."""
        for _ in range(1 if self.toy else warm):
            run()
        taken = []
        for _ in range(1 if self.toy else repeats or self.repeats):
            self.sync()
            began = time.perf_counter()
            run()
            self.sync()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def peak_memory(self) -> float | None:
        """GiB that torch held at most since the last call; None on a CPU."""
        if self.toy:
            return None
        found: float = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return found

    def free(self) -> None:
        """Forget what was compiled and what is held, so that cases are alike."""
        torch._dynamo.reset()
        if not self.toy:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


class _Toy(CPU):
    """Graphs are captured as on a GPU; code is not made of them."""

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True, backend="eager")
        return compiled


class _Graphed(Accelerator):
    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True, mode="reduce-overhead")
        return compiled


@dataclass(frozen=True)
class Rates:
    """What the device does at most: stated by its maker, and measured here."""

    stated_operations: float | None
    stated_bytes: float | None
    operations: float
    """bf16 operations per second of a large matrix product."""
    bytes: float
    """Bytes per second of a large copy, read and written."""


def rates(place: Place) -> Rates:
    """Measure a matrix product and a copy."""
    n, size = (64, 2**16) if place.toy else (8192, 2**29)
    a, b = (torch.randn(n, n, device=place.device, dtype=torch.bfloat16) for _ in range(2))
    held = torch.empty(size, device=place.device, dtype=torch.uint8)
    other = torch.empty_like(held)
    product = 2 * n**3 / place.seconds(lambda: a @ b, 10)
    copy = 2 * size / place.seconds(lambda: other.copy_(held), 10)
    stated = None if place.toy else recognised(place.name)
    return Rates(stated and stated.operations, stated and stated.memory_rate, product, copy)


def shares(amount: float, seconds: float, stated: float | None, measured: float) -> Row:
    """What part of the stated and of the measured rate an amount in so many seconds is."""
    return {
        "share_of_stated": None if stated is None else amount / seconds / stated,
        "share_of_measured": amount / seconds / measured,
    }


def tried(case: Row, run: Callable[[], Row]) -> Row:
    """A case's row; what went wrong instead of figures, and the next case runs."""
    try:
        return case | run()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return case | {"problem": f"{type(error).__name__}: {lines[0][:200]}"}
