"""One forward pass: the plan's operations, one after the other, and what stands between them.

With ``E`` a tower's embedding, ``P`` its input projection, ``L_k`` its layers and ``G`` its head, and a link's site
that reads the source ``s`` after ``l`` layers::

    start   h_0 = P(E(x))       P in multimodal rows; added ids have rows of their own
    layer   u_k = L_k(h_(k-1))
    write   m = W(u_l of s)     before any link rewrites that state, so two towers may read each other at one depth
    read    h_k = R(u_k, m)     several sites of one depth one after the other; the identity on blind positions
    head    logits = G(h_n)     and those of added ids behind them

Where towers share the attention of a layer, ``project`` makes queries, keys and values of ``h_(k-1)``, ``write`` hands
keys and values on, ``read`` takes another tower's, and ``layer`` attends over them all. Other operations belong to
parts, which run them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from zippkit.batch.batch import UNDESCRIBED, TowerBatch
from zippkit.batch.masks import cache_mask
from zippkit.batch.shared import Shared
from zippkit.model.decoding_state import Decoding
from zippkit.model.economy import NATS, SPENDS, Economy, nats_at_targets
from zippkit.model.layers import at_least_float32
from zippkit.model.links.base import Link, Memory
from zippkit.model.links.joint_attention import attend_jointly
from zippkit.model.run_tower import own_mask, run_head, run_layer, run_start
from zippkit.model.tower import ROUTER, Projected, SharedAttention, Tower
from zippkit.plan.graph import LinkSite
from zippkit.plan.plan import Op, Plan


class Around(Protocol):
    """A part around a tower (`zippkit.model.part_group.PartGroup`)."""

    def known(self, name: str, inputs: TowerBatch) -> TowerBatch:
        """Replace ids that the tower does not know."""

    def embedded(
        self, name: str, tower: Tower, inputs: TowerBatch, hidden: Tensor, multimodal: Tensor | bool
    ) -> Tensor:
        """Rewrite the state (B, T, D) at depth 0."""

    def logits(self, name: str, logits: Tensor, hidden: Tensor, multimodal: Tensor | bool) -> Tensor:
        """Rewrite or extend the logits (B, T, V)."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of these parts."""


class Runs(Protocol):
    """All parts of one kind, some of which have operations of their own (`zippkit.model.part_group.PartGroup`)."""

    def run(self, name: str, op: Op, forward: Forward) -> None:
        """Run one operation of the part ``name``."""


class Modules(NamedTuple):
    """The modules that a plan's operations use."""

    towers: Mapping[str, Tower]
    links: Mapping[LinkSite, Link]
    around: Mapping[str, Sequence[Around]]
    """For each tower, from the inside out."""
    groups: Mapping[str, Runs]
    """Parts by their group."""
    inserted_into: Set[str]
    """Towers into whose sequence links insert slots."""


def known(name: str, inputs: TowerBatch, around: Sequence[Around]) -> TowerBatch:
    """Give a tower only ids that it knows: what stands around it replaces the others.

    Args:
        name: of the tower.
        inputs: its tokens.
        around: the parts around it, from the inside out.
    """
    for part in reversed(around):
        inputs = part.known(name, inputs)
    return inputs


class Forward:
    """The state of one run of a plan, and what each kind of operation does with it."""

    def __init__(
        self,
        modules: Modules,
        plan: Plan,
        inputs: Mapping[str, TowerBatch],
        multimodal: Tensor | bool,
        decoding: Decoding | None,
        economy: Economy = SPENDS,
    ) -> None:
        self.modules, self.multimodal, self.decoding = modules, multimodal, decoding
        shared = Shared(
            {name: tokens.visible for name, tokens in inputs.items() if tokens.own_stairs is not None}, economy.regions
        )
        n_slots = {name: decoding.n_slots[name] for name in decoding.caches} if decoding else {}
        self.inputs = {
            name: replace(tokens, shared=shared, n_slots=n_slots.get(name, 0)) for name, tokens in inputs.items()
        }
        self.economy = economy
        self.outputs: dict[str, Tensor] = {}
        """Logits (B, T, V) by tower, and what parts give, under names of their own."""
        self.hidden: dict[str, Tensor] = {}
        """(B, T, D) by tower: its state after the operations that have run."""
        self.context: dict[str, Any] = {}
        """By tower, what `Tower.layer` needs besides the state."""
        self.memories = dict(decoding.memories) if decoding else {}
        self.projected: dict[str, Projected] = {}
        """Queries, keys and values of the next layer, where its attention is shared."""
        self.joined: dict[str, list[Memory]] = {}
        """Other towers' keys and values in that attention."""
        self.scratch: dict[str | None, Any] = {}
        """By part, what it keeps between two of its operations."""
        self._read_here = {op.site for op in plan.ops if op.kind == "read"}

    def do(self, op: Op) -> None:
        """Run one operation."""
        given = self.inputs[op.tower].states
        if given is not None:
            self.hidden[op.tower] = given[op.depth]
        match op.kind:
            case "start":
                self.start(op)
            case "project":
                self.project(op)
            case "layer":
                self.layer(op)
            case "write":
                self.write(op)
            case "read":
                self.read(op)
            case "head":
                self.head(op)
            case _:
                group, _, name = (op.part or "").partition(".")
                self.modules.groups[group].run(name, op, self)

    def start(self, op: Op) -> None:
        """Embed a tower's new tokens."""
        name, inputs, modules = op.tower, self.inputs[op.tower], self.modules
        tower = modules.towers[name]
        mask, cache = own_mask(tower, inputs), None
        if self.decoding is not None and name in self.decoding.caches:
            cache = self.decoding.caches[name]
            branches = inputs.branches
            table = cache_mask(inputs.positions, inputs.n_slots) if branches is None else branches.sees
            mask = None if tower.takes_description else table
        hidden, self.context[name] = run_start(tower, known(name, inputs, modules.around[name]), mask, cache)
        for part in modules.around[name]:
            hidden = part.embedded(name, tower, inputs, hidden, self.multimodal)
        if name in modules.inserted_into:
            empty = tower.placed(torch.zeros_like(hidden), inputs)
            hidden = torch.where(inputs.inserted[:, :, None], empty, hidden)
        self.hidden[name] = hidden

    def project(self, op: Op) -> None:
        """Queries, keys and values of a layer whose attention is shared."""
        tower, context = self.modules.towers[op.tower], self.context[op.tower]
        hidden = self.hidden[op.tower].to(tower.dtype)
        self.projected[op.tower] = cast("SharedAttention", tower).project(op.depth - 1, hidden, context)

    def layer(self, op: Op) -> None:
        """One layer of a tower."""
        name, index, context = op.tower, op.depth - 1, self.context[op.tower]
        if name not in self.projected:
            run = partial(run_layer, self.modules.towers[name], index)
            self.hidden[name] = self.economy.run(name, run, self.hidden[name], context)
            return
        run = partial(self._join, index, name, self.projected.pop(name), self.joined.pop(name, []))
        self.hidden[name] = self.economy.run(name, run, self.hidden[name])

    def _join(self, index: int, name: str, parts: Projected, others: Sequence[Memory], hidden: Tensor) -> Tensor:
        """What follows a layer's projections: attention over its own keys and those of other towers, and the rest."""
        tower, context = self.modules.towers[name], self.context[name]
        shared = cast("SharedAttention", tower)
        keys, values, mask = shared.remember(index, parts, context)
        attended = attend_jointly(parts.queries, (keys, values), mask, self.inputs[name], others)
        return at_least_float32(shared.close(index, hidden.to(tower.dtype), attended, context))

    def write(self, op: Op) -> None:
        """Put a source's state into a link's memory; while decoding, for whoever reads it now or later."""
        site, tokens = _site_of(op), self._tokens(op)
        states = _keys_and_values(self.projected[op.tower]) if op.inside else self.hidden[op.tower]
        if self.decoding is None:
            self.memories[site] = self.economy.run(site.target, self.modules.links[site].write, states, tokens)
        elif site in self._read_here:
            everywhere = range(self.decoding.n_rows)
            self.memories[site] = self.decoding.keep(site, self.modules.links[site].write(states, tokens), everywhere)
        else:
            self.decoding.write_later(site, states, tokens)

    def read(self, op: Op) -> None:
        """Rewrite a target's state by a link's memory."""
        site, name = _site_of(op), op.tower
        if op.inside:
            self.joined.setdefault(name, []).append(self.memories[site])
        else:
            given = (self.hidden[name], self._tokens(op), self.memories[site])
            self.hidden[name] = at_least_float32(self.economy.run(name, self.modules.links[site].read, *given))

    def _tokens(self, op: Op) -> TowerBatch:
        """A tower's tokens as one of its sites is given them; where that is compiled, with what it shares made."""
        tokens, site = self.inputs[op.tower], _site_of(op)
        if not self.economy.regions or op.inside or not isinstance(tokens.shared, Shared):
            return tokens
        memory = self.memories[site] if op.kind == "read" else None
        made = tokens.shared.asked(partial(self.modules.links[site].ask, tokens, memory))
        return replace(tokens, shared=made, **UNDESCRIBED)

    def head(self, op: Op) -> None:
        """A tower's logits; or its loss, where they are too many (`Economy.logits`)."""
        name, hidden = op.tower, self.hidden[op.tower]
        tower, most = self.modules.towers[name], self.economy.logits
        n_logits = tower.config.vocab_size or 1
        if most is None or hidden.shape[0] * hidden.shape[1] * n_logits <= most:
            self.outputs[name] = self.logits(name, hidden, self.multimodal)
            return
        modules: list[Tower | Around] = [tower, *self.modules.around[name]]
        used = dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad)
        self.outputs[NATS + name] = nats_at_targets(
            partial(self.logits, name), hidden, self.inputs[name], self.multimodal, max(1, most // n_logits), [*used]
        )

    def logits(self, name: str, hidden: Tensor, multimodal: Tensor | bool) -> Tensor:
        """Logits (B, T, V) from a tower's last states (B, T, D)."""
        logits = run_head(self.modules.towers[name], hidden)
        for part in self.modules.around[name]:
            logits = part.logits(name, logits, hidden, multimodal)
        return logits

    def route(self, towers: Set[str]) -> None:
        """Load-balancing losses of some mixtures of experts, once all layers are run."""
        for name in self.context.keys() & towers:
            loss = self.modules.towers[name].router_loss(self.inputs[name], self.context[name])
            if loss is not None:
                self.outputs[ROUTER + name] = loss


def _site_of(op: Op) -> LinkSite:
    assert op.site is not None, "only links write and read"
    return op.site


def _keys_and_values(projected: Projected) -> Tensor:
    """(B, T, 2, H, K), as `zippkit.model.links.joint_attention` keeps them."""
    return rearrange([projected.keys, projected.values], "two b h t k -> b t two h k")
