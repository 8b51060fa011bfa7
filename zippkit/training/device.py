"""Which device a run is on, by its name in the recipe; the rest of the code never asks."""

from __future__ import annotations

import torch

from zippkit.errors import ZippkitError
from zippkit.spec.recipe import DeviceName
from zippkit.system.extras import require
from zippkit.training.backends import CPU, Accelerator, Backend

__all__ = ["CPU", "Backend", "backend"]


def backend(name: DeviceName = "auto") -> Backend:
    """The named backend, or the best one that torch finds by itself.

    Raises:
        ZippkitError: the device is not there.
    """
    if name == "xla":
        require("torch_xla")
        from zippkit.training.xla_device import XLA

        return XLA()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    there = accelerator.type if accelerator is not None else "cpu"
    if name in ("cuda", "tpu") and name != there:
        more = " (it comes with the package torch-tpu)" if name == "tpu" else ""
        raise ZippkitError(
            f"device: {name} was asked for, but torch sees no such device{more}; expected auto or cpu here"
        )
    return Accelerator(there) if name != "cpu" and there in ("cuda", "tpu") else CPU()
