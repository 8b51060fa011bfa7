"""Without gradients: as torch's inference mode, where the device of the process takes it."""

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
