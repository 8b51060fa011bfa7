"""XLA by torch_xla: operations are recorded, compiled for their shapes, and run at the end of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from zippkit.batch.batch import Batch
from zippkit.errors import ZippkitError
from zippkit.training.backends import Backend, Module


class XLA(Backend):
    """One device, or with ``XLA_USE_SPMD=1`` all of them as one: rows of a batch and parameters are dealt out."""

    name = "xla"
    static = True
    compiles = "whole"

    def __init__(self) -> None:
        try:
            import torch_xla
        except ImportError as error:
            raise ZippkitError(
                f"device: xla was asked for, but torch_xla cannot be loaded beside torch {torch.__version__}; expected "
                f"an environment of its own with one version of both, as docs/tpu.md says ({error})"
            ) from error
        self._xla = torch_xla
        self._device: torch.device = torch_xla.device()
        # A backward pass on the host before there is anything here would break every later one.
        self.mesh = _mesh()

    def device(self) -> torch.device:
        return self._device

    def place(self, module: Module) -> Module:
        """Move a module's parameters and buffers here; what is tied, which torch would part, stays tied."""
        names: dict[int, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        module.to(self._device)
        for first, *others in names.values():
            for owner, _, name in (other.rpartition(".") for other in others):
                setattr(module.get_submodule(owner), name, module.get_parameter(first))
        for parameter in module.parameters():
            self._deal(parameter)
        self.sync()
        return module

    def put(self, batch: Batch) -> Batch:
        moved = super().put(batch)
        for tensor in _tensors(moved):
            self._deal(tensor)
        return moved

    def sync(self) -> None:
        self._xla.sync(wait=True)

    def end_step(self) -> None:
        self._xla.sync()

    def ready(self, optimizer: torch.optim.Optimizer) -> None:
        """Run what is recorded, and change in place, by nothing, what a step does.

        What has never been changed in place lies in memory that is no step's result; a first step would be compiled
        for that alone.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with torch.no_grad():
            for tensor in [*parameters, *(each for p in parameters for each in optimizer.state[p].values())]:
                tensor.mul_(1)
        self.sync()

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` as it is: whatever runs here is compiled."""
        return function

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        with super().seeded(seed):
            self._xla.manual_seed(seed)
            yield

    def _deal(self, tensor: Tensor) -> None:
        """Deal out the first dimension, if it can be."""
        if self.mesh is not None and tensor.dim() and tensor.shape[0] % self.mesh.size() == 0:
            from torch_xla.distributed.spmd import mark_sharding

            mark_sharding(tensor, self.mesh, ("data", *(None,) * (tensor.dim() - 1)))


def _mesh() -> Any | None:
    """All devices in a row, where several are programmed as one."""
    from torch_xla import runtime

    if not runtime.is_spmd():
        return None
    from torch_xla.distributed.spmd import Mesh

    n_devices = runtime.global_runtime_device_count()
    return Mesh(list(range(n_devices)), (n_devices,), ("data",))


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in a batch and its parts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
