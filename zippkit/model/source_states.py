"""States of frozen source towers: which of them depend on nothing that is trained, and how they are computed alone.

Such a state is the same in every epoch, so that it may be kept (`zippkit.training.source_cache`) and given to the model
in `TowerBatch.states`; the plan then runs no operation of that tower but those that read its states.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.model.forward import Forward
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.plan import Op, Plan

STEPS = ("start", "layer")
"""The operations that make a tower's states; all others take them."""
_TRAINED = {
    "input_projections": "its input projection is trained",
    "adapters": "its adapters (LoRA) are trained",
    "vocabularies": "its added vocabulary is trained",
}


def tapped_depths(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The towers that a (pruned) plan reads, each with the depths at which it is read, ascending."""
    found: dict[str, set[int]] = {}
    for op in plan.ops:
        if op.kind == "write" or op.part is not None:
            found.setdefault(op.tower, set()).add(op.depth)
    return {tower: tuple(sorted(depths)) for tower, depths in found.items()}


def why_computed(model: ZippedModel, plan: Plan, tower: str) -> str:
    """Why a tower's states cannot be kept from step to step; empty where they can.

    Args:
        model: says what is trained, now.
        plan: pruned to a kind of batch.
        tower: one that the plan runs.
    """
    return next(_reasons(model, plan, tower), "")


def _reasons(model: ZippedModel, plan: Plan, tower: str) -> Iterator[str]:
    ops = [op for op in plan.ops if op.tower == tower]
    if any(parameter.requires_grad for parameter in model.tower(tower).parameters()):
        yield "trained"
    yield from _trained_parts(model, ops, tower)
    if any(op.kind == "head" for op in ops):
        yield "a loss is asked of it"
    if any(op.inside for op in ops):
        yield "its attention is shared with another tower"
    for op in ops:
        if op.kind == "read" and op.site is not None:
            yield f"link {op.site.link!r} rewrites its states"
    if model.tower(tower).training:
        yield "it is in training mode, in which its states may be random"


def _trained_parts(model: ZippedModel, ops: list[Op], tower: str) -> Iterator[str]:
    """The parts around a tower that are trained, of those that its states pass."""
    for name, group in model.groups.items():
        if group.around(tower, model.owner(tower)) and any(group.trains(op) for op in ops if op.kind in STEPS):
            yield _TRAINED.get(name, f"its part {name!r} is trained")


@torch.no_grad()
def source_states(
    model: ZippedModel, tower: str, depths: tuple[int, ...], inputs: TowerBatch, multimodal: Tensor | bool
) -> dict[int, Tensor]:
    """Run a source tower, and what stands around it, up to its last tap.

    Args:
        model: whose tower it is.
        tower: its name.
        depths: after how many layers its states are wanted.
        inputs: its tokens.
        multimodal: (B,) rows that pass the input projections, or one bool for all.

    Returns:
        States (B, T, D) by depth.
    """
    ops = [op for op in model.plan.ops if op.tower == tower and op.kind in STEPS and op.depth <= depths[-1]]
    plan = Plan(tuple(ops), ())
    forward = Forward(model.modules_of(plan), plan, {tower: inputs}, multimodal, None)
    found: dict[int, Tensor] = {}
    for op in ops:
        forward.do(op)
        if op.depth in depths:
            found[op.depth] = forward.hidden[tower]
    return found
