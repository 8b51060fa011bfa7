"""Adam over named parameter groups, with learning rates as tensors, so that a compiled step never changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zippkit.errors import CheckpointError, ZippkitError
from zippkit.spec.phase import Phase


def build_optimizer(model: nn.Module, rates: Mapping[str, float], phase: Phase) -> torch.optim.Adam:
    """Adam (arXiv 1412.6980) over the trainable parameters, one group for each prefix in ``rates`` that has any.

    Raises:
        ZippkitError: everything is frozen.
    """
    groups: list[dict[str, Any]] = []
    for prefix, rate in rates.items():
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and n.startswith(f"{prefix}.")]
        if named:
            device = named[0][1].device
            names, parameters = ([pair[i] for pair in named] for i in range(2))
            lr = torch.tensor(rate, device=device)
            groups.append({"params": parameters, "names": names, "group": prefix, "base": rate, "lr": lr})
    if not groups:
        raise ZippkitError("nothing to train: every tower is frozen and there is no link or input projection")
    return torch.optim.Adam(groups, betas=phase.betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale each group's base learning rate by the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"].fill_(group["base"] * factor)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``<parameter>:<state>``, to be saved."""
    return {
        f"{name}:{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put saved state back.

    Raises:
        CheckpointError: the state is of other parameters.
    """
    left = dict(tensors)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state = {
                key: left.pop(f"{name}:{key}") for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}:{key}" in left
            }
            # A parameter that no step has reached yet has no state.
            if state:
                shapes = {key: tensor.shape for key, tensor in state.items()}
                if shapes != {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
                    raise CheckpointError(f"{source}: the optimizer's state of {name} does not fit")
                optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    if left:
        raise CheckpointError(f"{source}: optimizer state of unknown parameters: {', '.join(sorted(left)[:5])}")
