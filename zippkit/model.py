"""The zipped model: one module that runs a plan, operation by operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from zippkit.batch import Batch, TowerBatch
from zippkit.graph import LinkSite
from zippkit.links.base import Link, Memory
from zippkit.masks import cache_mask, self_mask
from zippkit.plan import Op, Plan
from zippkit.tower import Tower


@dataclass
class Decoding:
    """Everything that generation keeps between steps."""

    caches: dict[str, Any] = field(default_factory=dict)
    """Each tower's own cache."""
    n_slots: dict[str, int] = field(default_factory=dict)
    """How many slots of each tower's cache are in use in the longest row, the new tokens included."""
    memories: dict[LinkSite, Memory] = field(default_factory=dict)
    """What the links keep of their finished segments."""
    pending: dict[LinkSite, list[Memory]] = field(default_factory=dict)
    """What they keep of the segments that are not finished; nobody reads it before `commit`."""

    def commit(self) -> None:
        """Let the towers that advance from now on see what was written."""
        for site, written in self.pending.items():
            earlier = [self.memories[site]] if site in self.memories else []
            self.memories[site] = Memory.join([*earlier, *written])
        self.pending.clear()


class ZippedModel(nn.Module):
    """Towers, input projections and links, run in the plan's order.

    State-dict keys are ``towers.<name>.…`` (the tower's own names), ``input_projections.<name>.…`` and
    ``links.<name>.<site>.…``.
    """

    def __init__(
        self,
        plan: Plan,
        towers: Mapping[str, Tower],
        input_projections: Mapping[str, nn.Module],
        links: Mapping[LinkSite, Link],
    ) -> None:
        super().__init__()
        self.plan = plan
        self.towers = nn.ModuleDict(towers)
        self.input_projections = nn.ModuleDict(input_projections)
        by_name: dict[str, nn.ModuleList] = {}
        for site, link in links.items():
            by_name.setdefault(site.link, nn.ModuleList()).append(link)
        self.links = nn.ModuleDict(by_name)

    def link(self, site: LinkSite) -> Link:
        """The module that acts at a site."""
        return cast("Link", cast("nn.ModuleList", self.links[site.link])[site.index])

    def tower(self, name: str) -> Tower:
        return cast("Tower", self.towers[name])

    def sites(self) -> set[tuple[str, int]]:
        """Link name and index of every link module that exists."""
        return {(name, i) for name, sites in self.links.items() for i in range(len(cast("nn.ModuleList", sites)))}

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a tower that is frozen as a whole stays in evaluation mode, so that its buffers rest."""
        super().train(mode)
        for tower in self.towers.values():
            if not _trainable(tower):
                tower.eval()
        return self

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Parameters that are not trained, and the buffers of towers that are frozen as a whole, by name."""
        frozen = {name: p.detach() for name, p in self.named_parameters() if not p.requires_grad}
        for name, tower in self.towers.items():
            if not _trainable(tower):
                frozen |= {f"towers.{name}.{key}": buffer for key, buffer in tower.named_buffers()}
        return frozen

    def _gradient_free(self, plan: Plan) -> frozenset[Op]:
        # Asked at every forward: a cached answer would be wrong, without a word, once somebody thaws a tower.
        towers = {name: _trainable(tower) for name, tower in self.towers.items()}
        projected = {name for name, projection in self.input_projections.items() if _trainable(projection)}

        def trains(op: Op) -> bool:
            if op.site is not None:
                return _trainable(self.link(op.site))
            return towers[op.tower] or (op.kind == "start" and op.tower in projected)

        return plan.gradient_free(trains)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits (B, T, V) of each tower on which the batch asks for a loss; nothing else is computed."""
        plan = self.plan.prune(heads=set(batch.outputs), sees=batch.sees)
        return self.run(plan, batch.towers, batch.multimodal)

    def run(
        self,
        plan: Plan,
        inputs: Mapping[str, TowerBatch],
        multimodal: Tensor | bool,
        decoding: Decoding | None = None,
    ) -> dict[str, Tensor]:
        """Run a (pruned) plan.

        Args:
            plan: what to run.
            inputs: the new tokens of the towers that the plan runs.
            multimodal: (B,) rows that pass the input projections, or one bool for all.
            decoding: caches to extend and memories to read and extend; None for a whole sequence at once.

        Returns:
            Logits (B, T, V) of each tower whose head the plan runs.
        """
        hidden: dict[str, Tensor] = {}
        context: dict[str, Any] = {}
        logits: dict[str, Tensor] = {}
        memories: dict[LinkSite, Memory] = {} if decoding is None else dict(decoding.memories)
        with_gradient = torch.is_grad_enabled()
        gradient_free = self._gradient_free(plan) if with_gradient else frozenset()
        for op in plan.ops:
            tower = op.tower
            with torch.set_grad_enabled(with_gradient and op not in gradient_free):
                if op.kind == "start":
                    hidden[tower], context[tower] = self._start(tower, inputs[tower], multimodal, decoding)
                elif op.kind == "layer":
                    hidden[tower] = self.tower(tower).layer(op.depth - 1, hidden[tower], context[tower])
                elif op.kind == "head":
                    logits[tower] = self.tower(tower).head(hidden[tower])
                elif op.kind == "write" and op.site is not None:
                    tokens = inputs[tower]
                    memories[op.site] = self.link(op.site).write(hidden[tower], tokens.visible, tokens.positions)
                    if decoding is not None:
                        decoding.pending.setdefault(op.site, []).append(memories[op.site])
                elif op.site is not None:
                    tokens = inputs[tower]
                    link = self.link(op.site)
                    hidden[tower] = link.read(hidden[tower], tokens.order, tokens.positions, memories[op.site])
        return logits

    def _start(
        self, name: str, inputs: TowerBatch, multimodal: Tensor | bool, decoding: Decoding | None
    ) -> tuple[Tensor, Any]:
        tower = self.tower(name)
        if decoding is None or name not in decoding.caches:
            hidden, context = tower.start(inputs, self_mask(inputs, tower.config.causal))
        else:
            mask = cache_mask(inputs.positions, decoding.n_slots[name])
            hidden, context = tower.start(inputs, mask, decoding.caches[name])
        if name in self.input_projections and multimodal is not False:
            projected = self.input_projections[name](hidden)
            hidden = projected if multimodal is True else torch.where(multimodal[:, None, None], projected, hidden)
        return hidden, context


def _trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
