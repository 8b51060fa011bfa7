"""The zipped model: one module that holds towers, links and other parts, and runs a plan over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn

from zippkit.batch.batch import Batch, TowerBatch
from zippkit.model.decoding_form import Forms
from zippkit.model.decoding_state import Decoding
from zippkit.model.economy import SPENDS, Economy
from zippkit.model.forward import Forward, Modules, known
from zippkit.model.links.base import Link
from zippkit.model.loss import Counts, n_targets
from zippkit.model.part_group import Loss, PartGroup
from zippkit.model.tower import ROUTER, Tower
from zippkit.plan.graph import LinkSite
from zippkit.plan.plan import Op, Plan, Wanted


class ZippedModel(nn.Module):
    """Towers and the parts that go with them, run in the plan's order.

    State-dict keys are ``towers.<name>.…`` (the tower's own names) and ``<group>.<name>.…`` of each part: the groups
    are ``input_projections``, ``adapters``, ``vocabularies``, ``links`` (``links.<name>.<site>.…``), ``contrastive``,
    ``next``, and those of other packages.
    """

    def __init__(self, plan: Plan, towers: Mapping[str, Tower], groups: Mapping[str, PartGroup]) -> None:
        super().__init__()
        self.plan = plan
        sites = {op.site for op in plan.ops if op.site is not None}
        self._inserted_into = {site.target for site in sites if site.acts == "embedding"}
        self.towers = nn.ModuleDict(towers)
        for name, group in groups.items():
            self.add_module(name, group)
        inside_out = list(groups.values())[::-1]
        self.forms = Forms()
        """Copies of weights, laid out for decoding; none until something is generated."""
        self._around = {name: [g for g in inside_out if g.around(name, self.owner(name))] for name in towers}

    def modules_of(self, plan: Plan) -> Modules:
        """The modules that a plan's operations use."""
        sites = {op.site for op in plan.ops if op.site is not None}
        return Modules(
            towers={name: self.tower(name) for name in self.towers},
            links={site: self.link(site) for site in sites},
            around=self._around,
            groups=self.groups,
            inserted_into=self._inserted_into,
        )

    @property
    def groups(self) -> dict[str, PartGroup]:
        """All parts, by their group; around a tower, from the outside in."""
        return {name: child for name, child in self.named_children() if isinstance(child, PartGroup)}

    def link(self, site: LinkSite) -> Link:
        """The module that acts at a site."""
        links = cast("PartGroup", self.get_submodule("links"))
        return cast("Link", cast("nn.ModuleList", links[site.link])[site.index])

    def tower(self, name: str) -> Tower:
        """A tower by its name."""
        return cast("Tower", self.towers[name])

    def owner(self, name: str) -> str:
        """The tower under whose name a tower's weights and adapters stand: another one where it shares its weights."""
        return next(other for other, _ in self.towers.named_children() if self.towers[other] is self.towers[name])

    def known(self, name: str, inputs: TowerBatch) -> TowerBatch:
        """A tower's tokens as it is to be given them: without ids that it does not know itself."""
        return known(name, inputs, self._around[name])

    def routes(self, tower: str) -> bool:
        """Whether a tower is a mixture of experts that is trained to deal its tokens out evenly."""
        return self.tower(tower).router_weight > 0 and _trainable(self.tower(tower))

    def added_losses(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Loss]:
        """The losses that are not of tokens, from what the model gave."""
        parts = {name: each for group in self.groups.values() for name, each in group.losses(outputs, batch).items()}
        routed = [name for name in self.towers if ROUTER + name in outputs]
        return parts | {ROUTER + name: Loss(outputs[ROUTER + name], self.tower(name).router_weight) for name in routed}

    def counts(self, batch: Batch) -> Counts:
        """How many things each loss of a batch is a mean over; nothing waits for the device."""
        tokens = {name: n_targets(batch, name) for name in batch.outputs}
        others = {name: count for group in self.groups.values() for name, count in group.counts(batch).items()}
        routed = {ROUTER + name: (each.order >= 0).sum() for name, each in batch.towers.items() if self.routes(name)}
        return Counts(tokens, others | routed)

    def sites(self) -> set[tuple[str, int]]:
        """Link name and index of every link module that exists."""
        links = cast("PartGroup", self.get_submodule("links"))
        return {(name, i) for name, sites in links.items() for i in range(len(cast("nn.ModuleList", sites)))}

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen as a whole stays in evaluation mode: its buffers rest, and it drops nothing."""
        super().train(mode)
        if mode:
            self.forms.clear()
        parts = (part for group in self.groups.values() for part in group.children())
        for module in (*self.towers.values(), *parts):
            if not _trainable(module):
                module.eval()
        return self

    def _gradient_free(self, plan: Plan) -> frozenset[Op]:
        # Asked at every forward: a cached answer would be wrong, without a word, once somebody thaws a tower.
        towers = {name: _trainable(tower) for name, tower in self.towers.items()}

        def trains(op: Op) -> bool:
            if op.site is not None:
                return _trainable(self.link(op.site))
            if op.part is not None:
                return True
            return towers[op.tower] or any(part.trains(op) for part in self._around[op.tower])

        return plan.gradient_free(trains)

    def forward(self, batch: Batch, economy: Economy = SPENDS) -> dict[str, Tensor]:
        """Run what the batch needs, and nothing else.

        Args:
            batch: the rows.
            economy: how to save memory; without it, nothing is given up for that.

        Returns:
            By tower, logits (B, T, V) where the batch asks for a loss; by contrastive loss, (B, B) logits between
            towers that are there; where the model predicts what follows, (B, T, N + 1) of each, as ``next.<tower>``; of
            trained mixtures of experts, the load-balancing loss, as ``router.<tower>``. Instead of logits that are not
            to be held whole, the sum of the nats of a tower's targets, as ``nats.<tower>``.
        """
        return self.run(self.plan.prune(self.wanted(batch)), batch.towers, batch.multimodal, economy=economy)

    def wanted(self, batch: Batch) -> Wanted:
        """The outputs that a loss on a batch needs."""
        missing = {op.part for op in self.plan.ops if op.tower not in batch.towers}
        parts = {op.part for op in self.plan.ops if op.part is not None and batch.outputs} - missing
        answering = {part for part in parts if self._part(part)[0].answers(self._part(part)[1], batch)}
        kept = {name for name, tokens in batch.towers.items() if tokens.states is not None}
        return Wanted(heads=set(batch.outputs), sees=batch.sees, parts=answering, kept=kept)

    def run(
        self,
        plan: Plan,
        inputs: Mapping[str, TowerBatch],
        multimodal: Tensor | bool,
        decoding: Decoding | None = None,
        economy: Economy = SPENDS,
    ) -> dict[str, Tensor]:
        """Run a (pruned) plan.

        Args:
            plan: what to run.
            inputs: the new tokens of the towers that the plan runs.
            multimodal: (B,) rows that pass the input projections, or one bool for all.
            decoding: caches to extend and memories to read and extend; None for a whole sequence at once.
            economy: how to save memory.

        Returns:
            Logits (B, T, V) of each tower whose head the plan runs, and what parts give.
        """
        forward = Forward(self.modules_of(plan), plan, inputs, multimodal, decoding, economy)
        with_gradient = torch.is_grad_enabled()
        gradient_free = self._gradient_free(plan) if with_gradient else frozenset()
        for op in plan.ops:
            with torch.set_grad_enabled(with_gradient and op not in gradient_free):
                forward.do(op)
        if decoding is None:
            forward.route({name for name in self.towers if self.routes(name)})
        return forward.outputs

    def _part(self, part: str) -> tuple[PartGroup, str]:
        """The group and the name of ``group.name``."""
        group, _, name = part.partition(".")
        return cast("PartGroup", self.get_submodule(group)), name

    def commit(self, decoding: Decoding, rows: Sequence[int]) -> None:
        """The segments of some rows are finished: the towers that advance there from now on see them."""
        for site, pending in decoding.pending.items():
            finished = [row for row in rows if row in pending.since]
            if finished:
                decoding.keep(site, self.link(site).write(*pending.take(finished)), finished)


def _trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
