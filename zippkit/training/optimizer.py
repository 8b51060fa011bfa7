"""The optimiser over named parameter groups, with learning rates as tensors, so that a compiled step never changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zippkit.errors import CheckpointError, ZippkitError
from zippkit.spec.phase import Phase
from zippkit.training.sharding import Shards


def build_optimizer(
    model: nn.Module, rates: Mapping[str, float], phase: Phase, shards: Shards | None = None
) -> torch.optim.Optimizer:
    """The phase's optimiser over the trainable parameters, one group for each prefix in ``rates`` that has any.

    Adam (arXiv 1412.6980), AdamW (1711.05101) and Adafactor (1804.04235) are torch's. With weight decay, norms,
    gates, biases and embeddings, which do not decay, are in a second group of the same name.

    Raises:
        ZippkitError: everything is frozen.
    """
    groups: list[dict[str, Any]] = []
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for prefix, rate in rates.items():
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and n.startswith(f"{prefix}.")]
        resting = {n for n, p in named if phase.weight_decay and (p.dim() < 2 or id(p) in embeddings)}
        for decay in (phase.weight_decay, 0.0) if resting else (phase.weight_decay,):
            pairs = [(n, p) for n, p in named if (n in resting) == (decay == 0 and bool(resting))]
            if pairs:
                lr = torch.tensor(rate, device=pairs[0][1].device)
                names, parameters = [name for name, _ in pairs], [shards.of(p) if shards else p for _, p in pairs]
                group = {"params": parameters, "names": names, "group": prefix, "base": rate, "lr": lr}
                groups.append(group | {"weight_decay": decay})
    if not groups:
        raise ZippkitError("nothing to train: every tower is frozen and no link or input projection is trained")
    optimizer = _make(groups, phase)
    for parameter in [p for group in groups for p in group["params"]]:
        optimizer.state[parameter] = _first_state(optimizer, parameter)
    return optimizer


def _make(groups: list[dict[str, Any]], phase: Phase) -> torch.optim.Optimizer:
    # What is recorded and compiled must not read its count of steps on the host, and has no fused kernel.
    recorded = groups[0]["lr"].device.type in ("xla", "tpu")
    how: dict[str, Any] = {"capturable": True, "foreach": False} if recorded else {"fused": True}
    match phase.optimizer:
        case "adam":
            return torch.optim.Adam(groups, betas=phase.betas, **how)
        case "adamw":
            return torch.optim.AdamW(groups, betas=phase.betas, **how)
        case "adafactor":
            return torch.optim.Adafactor(groups)


def _first_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What torch's optimizer begins with at a parameter's first gradient.

    It is there from the start, so that a step which a parameter's gradient reaches first is the same computation as
    any other, and is compiled once.
    """
    if not isinstance(optimizer, torch.optim.Adafactor):
        step = torch.zeros((), device=parameter.device)
        return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
    step, shape = torch.zeros(()), parameter.shape  # Adafactor counts its steps on the host.
    if len(shape) < 2:
        return {"step": step, "variance": torch.zeros_like(parameter)}
    row, column = [*shape[:-1], 1], [*shape[:-2], 1, shape[-1]]
    return {"step": step, "row_var": parameter.new_zeros(row), "col_var": parameter.new_zeros(column)}


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
        CheckpointError: the state is of other parameters, or of another optimizer.
    """
    saved: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(":")
        saved.setdefault(name, {})[part] = tensor
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            # In older files, a parameter that no step had reached has no state.
            if state := saved.pop(name, None):
                own = optimizer.state[parameter]
                if {key: tensor.shape for key, tensor in state.items()} != {key: own[key].shape for key in own}:
                    raise CheckpointError(
                        f"{source}: the optimizer's state of {name} does not fit; expected that of "
                        f"{type(optimizer).__name__}, for {tuple(parameter.shape)}, got {', '.join(sorted(state))}"
                    )
                optimizer.state[parameter] = {key: tensor.to(own[key].device) for key, tensor in state.items()}
    if saved:
        unknown = sorted(f"{name}:{part}" for name, parts in saved.items() for part in parts)
        raise CheckpointError(f"{source}: optimizer state of unknown parameters: {', '.join(unknown[:5])}")
