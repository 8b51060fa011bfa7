"""The zipped model: one module that runs a plan, operation by operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from zippkit.batch.batch import Batch, TowerBatch
from zippkit.batch.masks import cache_mask, self_mask
from zippkit.model.added_vocabulary import AddedVocabulary
from zippkit.model.contrastive import ContrastHead
from zippkit.model.decoding_state import Decoding
from zippkit.model.layers import at_least_float32
from zippkit.model.links.base import Link, Memory
from zippkit.model.links.joint_attention import attend_jointly
from zippkit.model.next_modality import PREFIX, NextHead
from zippkit.model.tower import ROUTER, Projected, SharedAttention, Tower, run_head, run_layer, run_start
from zippkit.plan.graph import LinkSite
from zippkit.plan.plan import Op, Plan


class ZippedModel(nn.Module):
    """Towers, links and what goes with them, run in the plan's order.

    State-dict keys are ``towers.<name>.…`` (the tower's own names), ``input_projections.<name>.…``,
    ``vocabularies.<tower>.…``, ``adapters.<tower>.…``, ``links.<name>.<site>.…``, ``contrastive.<name>.…`` and
    ``next.<tower>.…``.
    """

    def __init__(
        self,
        plan: Plan,
        towers: Mapping[str, Tower],
        input_projections: Mapping[str, nn.Module],
        links: Mapping[LinkSite, Link],
        vocabularies: Mapping[str, AddedVocabulary] | None = None,
        contrasts: Mapping[str, ContrastHead] | None = None,
        adapters: Mapping[str, nn.ModuleDict] | None = None,
        next_heads: Mapping[str, NextHead] | None = None,
        next_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.towers = nn.ModuleDict(towers)
        self.input_projections = nn.ModuleDict(input_projections)
        by_name: dict[str, nn.ModuleList] = {}
        for site, link in links.items():
            by_name.setdefault(site.link, nn.ModuleList()).append(link)
        self.links = nn.ModuleDict(by_name)
        self.vocabularies = nn.ModuleDict(vocabularies or {})
        self.contrastive = nn.ModuleDict(contrasts or {})
        self.adapters = nn.ModuleDict(adapters or {})
        self.next = nn.ModuleDict(next_heads or {})
        self._next_weight = next_weight
        self.inserted_into = {site.target for site in links if site.acts == "embedding"}
        self._adapted = {name for name in towers if self.owner(name) in self.adapters}

    def link(self, site: LinkSite) -> Link:
        """The module that acts at a site."""
        return cast("Link", cast("nn.ModuleList", self.links[site.link])[site.index])

    def tower(self, name: str) -> Tower:
        return cast("Tower", self.towers[name])

    def owner(self, name: str) -> str:
        """The tower under whose name a tower's weights and adapters stand: another one where it shares its weights."""
        return next(other for other, _ in self.towers.named_children() if self.towers[other] is self.towers[name])

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss that is not of tokens beside that of the tokens."""
        contrasts = {name: cast("ContrastHead", head).weight for name, head in self.contrastive.items()}
        towers = ((name, self.tower(name)) for name in self.towers)
        routers = {ROUTER + name: tower.router_weight for name, tower in towers if self._routes(tower)}
        return contrasts | ({"next": self._next_weight} if self.next else {}) | routers

    @staticmethod
    def _routes(tower: Tower) -> bool:
        """Whether a tower is trained to deal its tokens out evenly."""
        return tower.router_weight > 0 and _trainable(tower)

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

    def _gradient_free(self, plan: Plan) -> frozenset[Op]:
        # Asked at every forward: a cached answer would be wrong, without a word, once somebody thaws a tower.
        towers = {name: _trainable(tower) or name in self._adapted for name, tower in self.towers.items()}
        projected = {name for name, projection in self.input_projections.items() if _trainable(projection)}

        def trains(op: Op) -> bool:
            if op.site is not None:
                return _trainable(self.link(op.site))
            if op.kind in ("pool", "next"):
                return True
            added = op.tower in self.vocabularies and op.kind in ("start", "head")
            return towers[op.tower] or added or (op.kind == "start" and op.tower in projected)

        return plan.gradient_free(trains)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits (B, T, V) of each tower on which the batch asks for a loss, and (B, B) of each contrastive loss
        between towers that are there; where the model tells what comes next, (B, T, N + 1) of each tower, as
        ``next.<tower>``; of trained mixtures of experts, one number that tells how unevenly tokens were dealt out, as
        ``router.<tower>``. Nothing else is computed."""
        missing = {op.contrast for op in self.plan.ops if op.contrast and op.tower not in batch.towers}
        contrasts = self.contrastive.keys() - missing if batch.outputs else set()
        nexts = {name for name, tower in batch.towers.items() if self.next and tower.following is not None}
        plan = self.plan.prune(
            heads=set(batch.outputs), sees=batch.sees, contrasts=contrasts, nexts=nexts if batch.outputs else set()
        )
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
        forward = _Forward(self, plan, inputs, multimodal, decoding)
        with_gradient = torch.is_grad_enabled()
        gradient_free = self._gradient_free(plan) if with_gradient else frozenset()
        for op in plan.ops:
            with torch.set_grad_enabled(with_gradient and op not in gradient_free):
                forward.do(op)
        if decoding is None:
            forward.route()
        return forward.logits

    def commit(self, decoding: Decoding, rows: Sequence[int]) -> None:
        """The segments of some rows are finished: the towers that advance there from now on see them."""
        for site, pending in decoding.pending.items():
            finished = [row for row in rows if row in pending.since]
            if finished:
                decoding.keep(site, self.link(site).write(*pending.take(finished)), finished)

    def known(self, name: str, inputs: TowerBatch) -> TowerBatch:
        """A tower's tokens without ids that it does not know itself."""
        if name not in self.vocabularies:
            return inputs
        return cast("AddedVocabulary", self.vocabularies[name]).known(inputs)


class _Forward:
    """One run of a plan: what stands between its operations, and what each of them does."""

    def __init__(
        self,
        model: ZippedModel,
        plan: Plan,
        inputs: Mapping[str, TowerBatch],
        multimodal: Tensor | bool,
        decoding: Decoding | None,
    ) -> None:
        self.model, self.inputs, self.multimodal, self.decoding = model, inputs, multimodal, decoding
        self.read_here = {op.site for op in plan.ops if op.kind == "read"}
        self.hidden: dict[str, Tensor] = {}
        self.context: dict[str, Any] = {}
        self.logits: dict[str, Tensor] = {}
        self.memories = dict(decoding.memories) if decoding else {}
        self.projected: dict[str, Projected] = {}
        """What the next layer's attention is made of, where it is shared."""
        self.joined: dict[str, list[Memory]] = {}
        """What that attention sees of other towers."""
        self.pooled: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def do(self, op: Op) -> None:
        """Run one operation."""
        {
            "start": self.start,
            "project": self.project,
            "layer": self.layer,
            "write": self.write,
            "read": self.read,
            "pool": self.pool,
            "head": self.head,
            "next": self.next,
        }[op.kind](op)

    def start(self, op: Op) -> None:
        name, inputs, model = op.tower, self.inputs[op.tower], self.model
        tower = model.tower(name)
        mask, cache = self_mask(inputs, tower.config.causal), None
        if self.decoding is not None and name in self.decoding.caches:
            mask, cache = cache_mask(inputs.positions, self.decoding.n_slots[name]), self.decoding.caches[name]
        hidden, self.context[name] = run_start(tower, model.known(name, inputs), mask, cache)
        if name in model.vocabularies:
            hidden = cast("AddedVocabulary", model.vocabularies[name]).start(tower, inputs, hidden)
        if name in model.input_projections and self.multimodal is not False:
            # Under autocast its last map gives bfloat16, and without a residual all later layers would add to that.
            projected, rows = at_least_float32(model.input_projections[name](hidden)), self.multimodal
            hidden = projected if rows is True else torch.where(rows[:, None, None], projected, hidden)
        if name in model.inserted_into:
            empty = tower.placed(torch.zeros_like(hidden), inputs)
            hidden = torch.where(inputs.inserted[:, :, None], empty, hidden)
        self.hidden[name] = hidden

    def project(self, op: Op) -> None:
        tower, hidden = self.model.towers[op.tower], self.hidden[op.tower].to(self.model.tower(op.tower).dtype)
        shared = cast("SharedAttention", tower)
        self.projected[op.tower] = shared.project(op.depth - 1, hidden, self.context[op.tower])

    def layer(self, op: Op) -> None:
        name, index, context = op.tower, op.depth - 1, self.context[op.tower]
        if name not in self.projected:
            self.hidden[name] = run_layer(self.model.tower(name), index, self.hidden[name], context)
            return
        tower, parts = cast("SharedAttention", self.model.towers[name]), self.projected.pop(name)
        keys, values, mask = tower.remember(index, parts, context)
        others = self.joined.pop(name, [])
        attended = attend_jointly(parts.queries, (keys, values), mask, self.inputs[name].order, others)
        hidden = self.hidden[name].to(self.model.tower(name).dtype)
        self.hidden[name] = at_least_float32(tower.close(index, hidden, attended, context))

    def write(self, op: Op) -> None:
        site, tokens = _site_of(op), self.inputs[op.tower]
        states = _keys_and_values(self.projected[op.tower]) if op.inside else self.hidden[op.tower]
        if self.decoding is None:
            self.memories[site] = self.model.link(site).write(states, tokens)
        elif site in self.read_here:
            everywhere = range(self.decoding.n_rows)
            self.memories[site] = self.decoding.keep(site, self.model.link(site).write(states, tokens), everywhere)
        else:
            self.decoding.write_later(site, states, tokens)

    def read(self, op: Op) -> None:
        site, name = _site_of(op), op.tower
        if op.inside:
            self.joined.setdefault(name, []).append(self.memories[site])
        else:
            link = self.model.link(site)
            self.hidden[name] = at_least_float32(link.read(self.hidden[name], self.inputs[name], self.memories[site]))

    def pool(self, op: Op) -> None:
        contrast, name = cast("str", op.contrast), op.tower
        head = cast("ContrastHead", self.model.contrastive[contrast])
        pooled = self.pooled.setdefault(contrast, [])
        pooled.append(head.pool(name, self.hidden[name], self.inputs[name]))
        if len(pooled) == 2:
            self.logits[contrast] = head.compare(*pooled)

    def route(self) -> None:
        """What the routers of trained towers did, once all layers are run."""
        for name, context in self.context.items():
            tower = self.model.tower(name)
            if self.model._routes(tower):
                told = tower.router_loss(self.inputs[name], context)
                if told is not None:
                    self.logits[ROUTER + name] = told

    def next(self, op: Op) -> None:
        self.logits[PREFIX + op.tower] = self.model.next[op.tower](self.hidden[op.tower])

    def head(self, op: Op) -> None:
        name, hidden = op.tower, self.hidden[op.tower]
        logits = run_head(self.model.tower(name), hidden)
        if name in self.model.vocabularies:
            logits = cast("AddedVocabulary", self.model.vocabularies[name]).head(logits, hidden)
        self.logits[name] = logits


def _site_of(op: Op) -> LinkSite:
    assert op.site is not None, "only links write and read"
    return op.site


def _keys_and_values(projected: Projected) -> Tensor:
    """(B, T, 2, H, K), as `zippkit.model.links.joint_attention` keeps them."""
    return torch.stack([projected.keys, projected.values], dim=1).permute(0, 3, 1, 2, 4)


def _trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
