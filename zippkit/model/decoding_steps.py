"""A decoding step as a flat run of functions: the plan's operations of one tower, for one token of each row.

Towers and links run by their twins (`zippkit.model.decoding_form`), or by themselves where they have none. What begins
and ends a step (embeddings, parts around a tower, states that links write later) is `zippkit.model.forward`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.model.compiled_step import FLAT, CompiledStep
from zippkit.model.decoding_form import Forms
from zippkit.model.decoding_state import Decoding
from zippkit.model.forward import Forward, Modules
from zippkit.model.layers import at_least_float32
from zippkit.model.links.base import LinkForm
from zippkit.model.run_tower import run_layer
from zippkit.model.tower import TowerForm
from zippkit.plan.graph import LinkSite
from zippkit.plan.plan import Op, Plan

Do = Callable[[Tensor, Forward], Tensor]
"""A state (B, D) to the next one."""
ModulesOf = Callable[[Plan], Modules]


class Steps:
    """The flat steps of one generation, by their plans."""

    def __init__(self, forms: Forms, compile: bool = False) -> None:
        self._forms, self._compile = forms, compile
        self._known: dict[int, tuple[Plan, FlatStep | CompiledStep | None]] = {}

    def run(
        self,
        modules_of: ModulesOf,
        plan: Plan,
        inputs: Mapping[str, TowerBatch],
        multimodal: Tensor | bool,
        decoding: Decoding,
    ) -> dict[str, Tensor] | None:
        """Run a step; None where this plan or these tokens have no flat one.

        Args:
            modules_of: the model's.
            plan: what to run.
            inputs: the new tokens.
            multimodal: (B,) rows that pass the input projections, or one bool for all.
            decoding: caches and memories.
        """
        if len(inputs) != 1 or next(iter(inputs.values())).tokens.shape[1] != 1 or torch.is_autocast_enabled("cpu"):
            return None
        if id(plan) not in self._known:
            self._known[id(plan)] = (plan, self._step(modules_of(plan), plan) if _is_flat(plan) else None)
        step = self._known[id(plan)][1]
        return None if step is None else step.run(inputs, multimodal, decoding)

    def _step(self, modules: Modules, plan: Plan) -> FlatStep | CompiledStep:
        compiled = CompiledStep.of(modules, plan, self._forms) if self._compile else None
        if compiled is None:
            return FlatStep(modules, plan, self._forms)
        held = self._forms.compiled.get(plan.ops)
        if held is None or not compiled.has_twins_of(held):
            held = self._forms.compiled[plan.ops] = compiled
        return held


def _is_flat(plan: Plan) -> bool:
    """Whether one tower runs from its start on, and its attention is its own; parts' operations come last."""
    kinds = [op.kind for op in plan.ops]
    own = [op for op in plan.ops if op.kind in FLAT]
    in_order = all(kind in FLAT for kind in kinds[: len(own)])
    return kinds[:1] == ["start"] and in_order and not any(op.inside for op in own)


class FlatStep:
    """The functions of one plan."""

    def __init__(self, modules: Modules, plan: Plan, forms: Forms) -> None:
        self.modules, self.plan, self.tower = modules, plan, plan.ops[0].tower
        self.form = forms.tower(modules.towers[self.tower])
        self._do: Sequence[Do] = [self._function(op, forms) for op in plan.ops[1:] if op.kind in FLAT]
        self._rest = [op for op in plan.ops if op.kind not in FLAT]

    def run(self, inputs: Mapping[str, TowerBatch], multimodal: Tensor | bool, decoding: Decoding) -> dict[str, Tensor]:
        """Run the step: logits (B, 1, V), and what parts give."""
        forward = Forward(self.modules, self.plan, inputs, multimodal, decoding)
        forward.start(self.plan.ops[0])
        hidden = forward.hidden[self.tower][:, 0]
        for do in self._do:
            hidden = do(hidden, forward)
        forward.hidden[self.tower] = hidden[:, None]
        for op in self._rest:
            forward.do(op)
        return forward.outputs

    def _function(self, op: Op, forms: Forms) -> Do:
        site = op.site
        if op.kind == "layer":
            return partial(_general_layer, op) if self.form is None else partial(_layer, self.form, op)
        if op.kind == "head":
            return partial(_general, op) if self.form is None else partial(_head, self.form, op)
        link = None if site is None or op.kind == "write" else forms.link(self.modules.links[site])
        return partial(_general, op) if link is None else partial(_read, link, op)


def _layer(form: TowerForm, op: Op, hidden: Tensor, forward: Forward) -> Tensor:
    return form.layer(op.depth - 1, hidden, forward.context[op.tower])


def _general_layer(op: Op, hidden: Tensor, forward: Forward) -> Tensor:
    tower = forward.modules.towers[op.tower]
    return run_layer(tower, op.depth - 1, hidden[:, None], forward.context[op.tower])[:, 0]


def _read(form: LinkForm, op: Op, hidden: Tensor, forward: Forward) -> Tensor:
    site, decoding = cast("LinkSite", op.site), cast("Decoding", forward.decoding)
    prepared = decoding.prepared.of(site, forward.memories[site], form.prepare)
    return at_least_float32(form.read(hidden, forward.inputs[op.tower], prepared))


def _head(form: TowerForm, op: Op, hidden: Tensor, forward: Forward) -> Tensor:
    logits = form.head(hidden)[:, None]
    for part in forward.modules.around[op.tower]:
        logits = part.logits(op.tower, logits, hidden[:, None], forward.multimodal)
    forward.outputs[op.tower] = logits
    return hidden


def _general(op: Op, hidden: Tensor, forward: Forward) -> Tensor:
    """Whatever `zippkit.model.forward.Forward` does."""
    forward.hidden[op.tower] = hidden[:, None]
    forward.do(op)
    return forward.hidden[op.tower][:, 0]
