"""The one object behind which a device stands: the processor, and what torch calls its accelerator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from zippkit.batch.batch import Batch

Module = TypeVar("Module", bound=nn.Module)


class Backend(ABC):
    """The device of a training step."""

    name: str
    static = False
    """Whether every new shape is compiled, so that few shapes are wanted."""
    compiles: Literal["regions", "whole"] = "regions"
    """What `compile: true` compiles: layers and sites by themselves, or forward pass and loss as one graph."""

    def device(self) -> torch.device:
        """The torch device of that name; where there are several, the process's current one."""
        return torch.device(self.name)

    def place(self, module: Module) -> Module:
        """Move a module's parameters and buffers here; what is tied stays tied."""
        return module.to(self.device())

    def put(self, batch: Batch) -> Batch:
        """Move a batch here; `undescribed`, where every new shape is compiled."""
        return (undescribed(batch) if self.static else batch).to(self.device())

    @abstractmethod
    def sync(self) -> None:
        """Wait until everything that was started has run."""

    def end_step(self) -> None:  # noqa: B027 (most run operations as they are called)
        """Start what a step has recorded, where operations are recorded first."""

    def ready(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027
        """Run what is recorded of a model and its optimizer, so that it is no part of the first step."""

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with static shapes, compiled."""
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True)
        return compiled

    def autocast(self, precision: Literal["fp32", "bf16"]) -> AbstractContextManager[Any]:
        """Run matrix products in ``precision``."""
        return torch.autocast(self.name, dtype=torch.bfloat16, enabled=precision == "bf16")

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Draw anew from ``seed``, on the host and here; what others draw goes on afterwards as before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield


class CPU(Backend):
    """The processor."""

    name = "cpu"

    def sync(self) -> None:
        """Nothing runs ahead."""


class Accelerator(Backend):
    """What `torch.accelerator` finds: CUDA or ROCm, and TPUs by the package torch-tpu."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.static = name == "tpu"
        self.compiles = "whole" if name == "tpu" else "regions"

    def sync(self) -> None:
        torch.accelerator.synchronize()

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.name == "cuda":
            return super().compile(function)
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True, backend=self.name)
        return compiled

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        with torch.random.fork_rng([torch.accelerator.current_device_index()], device_type=self.name):
            torch.manual_seed(seed)
            yield


def undescribed(batch: Batch) -> Batch:
    """A batch without the staircases of its masks, which differ between batches of one shape."""
    towers = {name: replace(tower, stairs={}, own_stairs=None) for name, tower in batch.towers.items()}
    return replace(batch, towers=towers)
