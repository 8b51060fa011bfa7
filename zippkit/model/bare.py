"""Towers whose values come later: built without any, and filled row by row once ranks know which rows they keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from zippkit.errors import CheckpointError
from zippkit.model.new_tower import default_dtype
from zippkit.model.tower import Tower
from zippkit.model.weights import load_into
from zippkit.spec.kinds import TowerConfig

SET_VALUES = frozenset(
    """
    constant_ copy_ dirac_ eye_ fill_ kaiming_normal_ kaiming_uniform_ normal_ ones_ orthogonal_ trunc_normal_ uniform_
    xavier_normal_ xavier_uniform_ zero_ zeros_
    """.split()  # noqa: SIM905
)
"""Names of functions that only set a tensor's values."""


M = TypeVar("M", bound=nn.Module)


class _DrawsAndDrops(TorchFunctionMode):
    """Draws what would be drawn for parameters that have no values, one at a time, so that what follows is the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = args[0] if args else (kwargs or {}).get("tensor")
        if getattr(func, "__name__", "") in SET_VALUES and isinstance(given, Tensor) and given.is_meta:
            scratch = torch.empty(given.shape, dtype=given.dtype, device="cpu")
            rest = {key: value for key, value in (kwargs or {}).items() if key != "tensor"}
            # What is copied was drawn already, and may be without values itself.
            if func is not Tensor.copy_:
                func(scratch, *args[1:], **rest)
            return given
        return func(*args, **(kwargs or {}))


def _without_values(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    del module, name
    if parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters have no values as soon as modules know them; buffers keep theirs."""
    hook = register_module_parameter_registration_hook(cast("Any", _without_values))
    try:
        yield
    finally:
        hook.remove()


def bare_tower(cls: type[Tower], config: TowerConfig, dtype: torch.dtype, source: Path) -> Tower | None:
    """A tower without values of its parameters, never more than one of which is held; random numbers go on as ever.

    None where it cannot be: the weights are read by rules of its own, or a buffer is made of a parameter's values.

    Raises:
        CheckpointError: files that cannot be read.
    """
    before = torch.get_rng_state()
    with default_dtype(dtype), _parameters_on_meta(), _DrawsAndDrops():
        tower = cls(config)
    names = [name for name, _ in tower.named_parameters(remove_duplicate=False)]
    sound = not any(buffer.is_meta for buffer in tower.buffers()) and len(names) == len(list(tower.parameters()))
    sound = sound and mapped_weights(tower, source) is not None
    if cls.made_by_weights or not sound:
        torch.set_rng_state(before)
    return tower if sound else None


def has_no_values(module: nn.Module) -> bool:
    """Whether parameters are still to be filled."""
    return any(parameter.is_meta for parameter in module.parameters())


def moved(model: M, device: torch.device | str) -> M:
    """A model on a device, but for towers that have no values yet."""
    if not has_no_values(model):
        return model.to(device)
    for module in model.modules():
        if not has_no_values(module):
            module.to(device)
    return model


def mapped_weights(tower: Tower, source: Path) -> dict[str, Tensor] | None:
    """Every tensor of a tower's weights under its own names, mapped from the files; None where these fit no mapping.

    Raises:
        CheckpointError: files that cannot be read.
    """
    found = tower.mapped_weights(source)
    own = tower.state_dict()
    if found is None or any(name not in found or found[name].shape != tensor.shape for name, tensor in own.items()):
        return None
    return {name: found[name] for name in own}


def fill_bare(tower: Tower, source: Path, device: torch.device | str) -> None:
    """Give a tower, whole or dealt to ranks, memory for what this one keeps of it, and copy those rows alone.

    Raises:
        CheckpointError: weights that do not fit.
    """
    found = mapped_weights(tower, source)
    if found is None:
        raise CheckpointError(f"{source}: other tensors than when the tower was built")
    kept = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    tower.to_empty(device=device)
    with torch.no_grad():
        for name, buffer in tower.named_buffers():
            buffer.copy_(kept[name])
    load_into(tower, found, str(source))
