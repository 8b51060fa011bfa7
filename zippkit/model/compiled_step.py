"""A decoding step as one compiled graph: `torch.compile`, and CUDA graphs on a GPU.

Shapes are fixed: caches and memories are read as far as they are allocated, behind masks, and grow by doubling; so a
graph serves until a cache grows or the number of rows changes, and the next generation of such sizes finds it made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.model.decoding_form import Forms
from zippkit.model.decoding_state import Decoding
from zippkit.model.forward import Forward, Modules
from zippkit.model.inference import is_recorded
from zippkit.model.kv_cache import KeyValues, capacity_for
from zippkit.model.layers import at_least_float32
from zippkit.model.links.base import LinkForm
from zippkit.model.packed import stays
from zippkit.model.tower import TowerForm
from zippkit.plan.graph import LinkSite
from zippkit.plan.plan import Op, Plan

FLAT = ("start", "layer", "read", "write", "head")
"""Operations of a flat step; parts' own may follow."""
MOST_GRAPHS = 64
"""Sizes for which a step is compiled."""


class CompiledStep:
    """The operations of one plan, of a tower and links that all have twins."""

    def __init__(self, modules: Modules, plan: Plan, form: TowerForm, links: Mapping[LinkSite, LinkForm]) -> None:
        self.modules, self.plan, self.form, self.links = modules, plan, form, links
        self.tower = plan.ops[0].tower
        self._rest = [op for op in plan.ops if op.kind not in FLAT]
        self._written = [cast("LinkSite", op.site) for op in plan.ops if op.kind == "write"]
        program = [(op.kind, op.depth - 1, links.get(op.site) if op.site else None) for op in _flat(plan)]
        self._chain = Chain(form, program)
        self._run: Any = None

    @classmethod
    def of(cls, modules: Modules, plan: Plan, forms: Forms) -> Self | None:
        """The step of a plan; None where something has no twin."""
        form = forms.tower(modules.towers[plan.ops[0].tower], blocked=False)
        sites = [op.site for op in plan.ops if op.kind == "read" and op.site]
        links = {site: forms.link(modules.links[site], blocked=False) for site in sites}
        known = {site: link for site, link in links.items() if link is not None}
        return None if form is None or len(known) < len(links) else cls(modules, plan, form, known)

    def has_twins_of(self, other: CompiledStep) -> bool:
        """Whether another step of the same operations runs the same weights."""
        return self.form is other.form and all(link is other.links[site] for site, link in self.links.items())

    def run(
        self, inputs: Mapping[str, TowerBatch], multimodal: Tensor | bool, decoding: Decoding
    ) -> dict[str, Tensor] | None:
        """Run the step: logits (B, 1, V), and what parts give; None with a cache of another kind."""
        name, cache = self.tower, decoding.caches[self.tower]
        if not isinstance(cache, KeyValues) or inputs[name].branches is not None:
            return None
        forward = Forward(self.modules, self.plan, inputs, multimodal, decoding)
        tokens = forward.inputs[name] = replace(forward.inputs[name], n_slots=cache.keys[0].shape[2])
        forward.start(self.plan.ops[0])
        for store in (*cache.keys, *cache.values):
            stays(store)
        readings = [self._reading(site, decoding, forward) for site in self.links]
        given = forward.hidden[name][:, 0].contiguous(), forward.context[name], replace(tokens, shared=None), readings
        hidden, logits, written = self._call(*given)
        for site, state in zip(self._written, written, strict=True):
            decoding.write_later(site, state[:, None], tokens)
        return self._finish(forward, hidden[:, None], logits)

    def _reading(self, site: LinkSite, decoding: Decoding, forward: Forward) -> Any:
        memory = forward.memories[site]
        return decoding.prepared.of(site, memory, self.links[site].prepare, capacity_for(memory.order.shape[1]))

    def _call(self, *given: Any) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        hidden: Tensor = given[0]
        if is_recorded(hidden.device):
            return self._chain(*given)
        if self._run is None:
            mode = "reduce-overhead" if hidden.is_cuda else None
            self._run = torch.compile(self._chain, dynamic=False, fullgraph=True, mode=mode)
        with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
            last, logits, written = self._run(*given)
        if hidden.is_cuda:
            # A CUDA graph writes over what it gave before.
            last, logits, written = (
                last.clone(),
                None if logits is None else logits.clone(),
                [w.clone() for w in written],
            )
        return last, logits, written

    def _finish(self, forward: Forward, hidden: Tensor, logits: Tensor | None) -> dict[str, Tensor]:
        forward.hidden[self.tower] = hidden
        if logits is not None:
            whole = logits[:, None]
            for part in self.modules.around[self.tower]:
                whole = part.logits(self.tower, whole, hidden, forward.multimodal)
            forward.outputs[self.tower] = whole
        for op in self._rest:
            forward.do(op)
        return forward.outputs


class Chain:
    """What is compiled: from the state at depth 0 to the logits."""

    def __init__(self, form: TowerForm, program: Sequence[tuple[str, int, LinkForm | None]]) -> None:
        self.form, self.program = form, program

    def __call__(
        self, hidden: Tensor, context: Any, tokens: TowerBatch, readings: Sequence[Any]
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Run all operations.

        Args:
            hidden: (B, D)
            context: what `Tower.start` gave.
            tokens: the new ones.
            readings: the memories, as the links read them, in the order of their reads.

        Returns:
            The last state (B, D), logits (B, V), and the states that links write.
        """
        logits, written, found = None, [], iter(readings)
        for kind, index, link in self.program:
            if kind == "layer":
                hidden = self.form.layer(index, hidden, context)
            elif kind == "read" and link is not None:
                hidden = at_least_float32(link.read(hidden, tokens, next(found)))
            elif kind == "write":
                written.append(hidden)
            else:
                logits = self.form.head(hidden)
        return hidden, logits, written


def _flat(plan: Plan) -> list[Op]:
    return [op for op in plan.ops[1:] if op.kind in FLAT]
