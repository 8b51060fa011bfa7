"""Without gradients, and without waiting for what is recorded: what inference is on each device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def inference() -> Iterator[None]:
    """`torch.inference_mode`; in a process that uses torch_xla, whose tensors refuse it, `torch.no_grad`."""
    with torch.no_grad() if "torch_xla" in sys.modules else torch.inference_mode():
        yield


def is_recorded(device: torch.device) -> bool:
    """Whether operations are recorded there, and compiled when something is read."""
    return device.type == "xla"


def run_recorded(device: torch.device) -> None:
    """Run what is recorded; else a step's graph would hold all that caches were given by the steps before."""
    if is_recorded(device):
        sys.modules["torch_xla"].sync()
