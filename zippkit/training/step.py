"""One training step, free of anything that makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zippkit.batch.batch import Batch
from zippkit.model.economy import Economy
from zippkit.model.loss import Counts, Share, loss
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.phase import Phase
from zippkit.training.device import Backend
from zippkit.training.masters import Masters

TrainingStep = Callable[..., dict[str, Tensor]]
"""Takes the batches of one step."""


def build_step(
    model: ZippedModel,
    optimizer: torch.optim.Optimizer,
    phase: Phase,
    backend: Backend,
    masters: Masters | None = None,
) -> TrainingStep:
    """A function that trains on one batch, or on several of which one step is made (already on the device).

    It returns the losses by tower, ``total`` and ``gradient_norm`` (before clipping) as tensors, all of the whole step.
    """
    recompute = model.towers if phase.recompute is True else phase.recompute or ()
    economy = Economy(logits=phase.logits_mib * 2**20 // 4, recompute=frozenset(recompute))
    masters = masters or Masters()
    parameters: list[Any] = [p for group in optimizer.param_groups for p in group["params"]]

    def forward(batch: Batch, share: Share | None) -> dict[str, Tensor]:
        with backend.autocast(phase.precision):
            outputs = model(batch, economy)
            return loss(outputs, batch, model.added_losses(outputs, batch), share)

    losses_of = backend.compile(forward) if phase.compile else forward

    def step(*batches: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        # Rows of a part may ask for no loss, and a step of nothing else is told as what it is.
        batches = tuple(batch for batch in batches if batch.outputs) or batches[:1]
        with masters.narrow():
            for batch, share in zip(batches, _shares(model, batches), strict=True):
                found = losses_of(batch, share)
                found["total"].backward()
                masters.collect()
                for name, value in found.items():
                    losses[name] = losses[name] + value.detach() if name in losses else value.detach()
        norm = torch.nn.utils.clip_grad_norm_(parameters, phase.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {**losses, "gradient_norm": norm.detach()}

    return step


def _shares(model: ZippedModel, batches: Sequence[Batch]) -> list[Share | None]:
    """What each batch is of the step; None where it is all of it."""
    if len(batches) == 1:
        return [None]
    counts = [model.counts(batch) for batch in batches]
    whole = Counts.sum(counts)
    return [Share(each, whole) for each in counts]
