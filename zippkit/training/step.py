"""One training step, free of anything that makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from zippkit.batch.batch import Batch
from zippkit.model.economy import Economy
from zippkit.model.loss import Share, loss
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.phase import Phase
from zippkit.training.agreement import shares as shares_of
from zippkit.training.device import Backend
from zippkit.training.parallel import World
from zippkit.training.regions import Regions, telling_first
from zippkit.training.sharding import Shards

TrainingStep = Callable[..., dict[str, Tensor]]
"""Takes the batches of one step, and what each is of the step (`zippkit.training.agreement.shares`)."""


def build_step(
    model: ZippedModel,
    optimizer: torch.optim.Optimizer,
    phase: Phase,
    backend: Backend,
    shards: Shards | None = None,
    regions: Regions | None = None,
) -> TrainingStep:
    """A function that trains on one batch, or on several of which one step is made (already on the device).

    It returns the losses by tower, ``total`` and ``gradient_norm`` (before clipping) as tensors, all of the whole step;
    where several ranks take part, losses are what this one adds to the step's.

    Args:
        model: in training mode.
        optimizer: of its parameters, or of what ``shards`` gives for them.
        phase: says how a step is run.
        backend: the device.
        shards: what this rank holds; None: everything.
        regions: what is compiled by itself; None: made here, if the phase asks for it and the model is not split.
    """
    whole = phase.compile and backend.compiles == "whole"
    if regions is None and phase.compile and not whole and (shards is None or not shards.are_split):
        regions = Regions(model, backend.compile)
    recompute = model.towers if phase.recompute is True else phase.recompute or ()
    economy = Economy(logits=phase.logits_mib * 2**20 // 4, recompute=frozenset(recompute), regions=regions is not None)
    held = shards or Shards(model, World())
    parameters: list[Any] = [p for group in optimizer.param_groups for p in group["params"]]

    def forward(batch: Batch, share: Share | None) -> dict[str, Tensor]:
        with backend.autocast(phase.precision):
            outputs = model(batch, economy)
            return loss(outputs, batch, model.added_losses(outputs, batch), share)

    losses_of = backend.compile(forward) if whole and not held.are_split else forward

    backend.ready(optimizer)

    def step(*batches: Batch, shares: Sequence[Share | None] = ()) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        if not shares:
            # Rows of a part may ask for no loss, and a step of nothing else is told as what it is.
            batches = tuple(batch for batch in batches if batch.outputs) or batches[:1]
            shares = shares_of(World(), model, batches)
        with held.narrow():
            for batch, share in zip(batches, shares, strict=True):
                with regions.compiled() if regions else nullcontext():
                    found = losses_of(batch, share)
                found["total"].backward()
                held.collect()
                for name, value in found.items():
                    losses[name] = losses[name] + value.detach() if name in losses else value.detach()
        norm = held.clip(parameters, phase.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        backend.end_step()
        return {**losses, "gradient_norm": norm.detach()}

    return step if regions is None or not held.world.leads else telling_first(step)
