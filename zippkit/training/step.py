"""One training step, free of anything that makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zippkit.batch.batch import Batch
from zippkit.model.loss import loss
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.phase import Phase
from zippkit.training.device import Backend

TrainingStep = Callable[[Batch], dict[str, Tensor]]


def build_step(model: ZippedModel, optimizer: torch.optim.Optimizer, phase: Phase, backend: Backend) -> TrainingStep:
    """A function that trains on one batch (already on the device).

    It returns the losses by tower, ``total`` and ``gradient_norm`` (before clipping) as tensors.
    """
    parameters: list[Any] = [p for group in optimizer.param_groups for p in group["params"]]

    def forward(batch: Batch) -> dict[str, Tensor]:
        with backend.autocast(phase.precision):
            outputs = model(batch)
            return loss(outputs, batch, model.added_losses(outputs, batch))

    losses_of = backend.compile(forward) if phase.compile else forward

    def step(batch: Batch) -> dict[str, Tensor]:
        losses = losses_of(batch)
        losses["total"].backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, phase.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {**{name: value.detach() for name, value in losses.items()}, "gradient_norm": norm.detach()}

    return step
