"""Devices behind one small object; the rest of the code never asks which one it runs on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from zippkit.errors import ZippkitError


class Backend(ABC):
    """The device of a training step."""

    name: str

    def device(self) -> torch.device:
        """The torch device of that name."""
        return torch.device(self.name)

    @abstractmethod
    def sync(self) -> None:
        """Wait until everything that was started has run."""

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with static shapes, compiled."""
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False, fullgraph=True)
        return compiled

    def autocast(self, precision: Literal["fp32", "bf16"]) -> AbstractContextManager[Any]:
        """Run matrix products in ``precision``."""
        return torch.autocast(self.name, dtype=torch.bfloat16, enabled=precision == "bf16")


class CPU(Backend):
    """The processor."""

    name = "cpu"

    def sync(self) -> None:
        """Nothing runs ahead."""


class CUDA(Backend):
    """One NVIDIA or AMD accelerator."""

    name = "cuda"

    def sync(self) -> None:
        """Wait until everything that was started has run."""
        torch.cuda.synchronize()


def backend(name: Literal["auto", "cpu", "cuda"] = "auto") -> Backend:
    """The named backend, or the best one that is there.

    Raises:
        ZippkitError: the device is not there.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ZippkitError("device: cuda was asked for, but torch sees no such device; expected auto or cpu here")
    return CUDA() if name == "cuda" or (name == "auto" and there) else CPU()
