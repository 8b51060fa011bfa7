"""Probes: copies of a model in which nothing is the identity any more, and random rows in every order of towers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from zippkit.batch import Batch, Segment, TowerBatch
from zippkit.composition import Composition
from zippkit.config import TowerConfig
from zippkit.graph import LinkSite
from zippkit.model import ZippedModel
from zippkit.plan import Plan

DRAWS = 8
"""How often a probe that found nothing is drawn again: a ReLU may be shut, or a token without effect, once."""


@torch.no_grad()
def jitter(parameters: Iterable[nn.Parameter], seed: int = 0) -> None:
    """Move every entry by an amount that is never near 0 and keeps states at their size."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        size = parameter.shape[1:].numel() ** -0.5 if parameter.dim() > 1 else 0.3
        noise = 2 * torch.rand(parameter.shape, generator=generator) - 1
        noise += noise.sign() / 2
        parameter.add_((size * noise).to(parameter))


def wake(model: nn.Module, seed: int = 0) -> None:
    """Open every gate and fill every zero output, so that whatever can leak does.

    Moves the trained parameters of links and input projections, and those of towers that are all zeros. What is
    frozen stays as it is: the certificates are about the user's own weights.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    jitter((p for name, p in trained if not name.startswith("towers.") or not p.any()), seed)


def woken(model: ZippedModel) -> ZippedModel:
    """A copy in evaluation mode, woken up."""
    model = copy.deepcopy(model).eval()
    wake(model)
    return model


class Draws:
    """Random tokens and rows, the same for the same seed, without touching the global random state."""

    def __init__(self, towers: Mapping[str, TowerConfig], seed: int = 0) -> None:
        self.towers = towers
        self._generator = torch.Generator().manual_seed(seed)
        self._pools = {name: _inner_ids(config) for name, config in towers.items()}

    def _below(self, n: int, shape: Sequence[int] = ()) -> Tensor:
        return torch.randint(n, tuple(shape), generator=self._generator)

    def row(self, layout: Sequence[str]) -> list[Segment]:
        """A segment of one to three tokens for each tower that ``layout`` names; left out where it is too long."""
        used: Counter[str] = Counter()
        segments = []
        for tower in layout:
            limit, n = self.towers[tower].max_len, 1 + int(self._below(3))
            if limit is not None:
                n = min(n, limit - used[tower] - 2)
            if n >= 0:
                pool = self._pools[tower]
                segments.append(Segment(tower, pool[self._below(len(pool), [n])]))
                used[tower] += n + 2
        return segments

    def changed(self, batch: Batch, where: Mapping[str, Tensor]) -> Batch:
        """The batch with another token wherever a tower's (B, T) mask says so."""
        towers = {
            name: replace(tokens, tokens=torch.where(where[name], self._others(name, tokens.tokens), tokens.tokens))
            for name, tokens in batch.towers.items()
            if name in where
        }
        return replace(batch, towers=batch.towers | towers)

    def _others(self, tower: str, tokens: Tensor) -> Tensor:
        pool, at = self._pools[tower], self._below(len(self._pools[tower]), tokens.shape)
        old, frame = tokens.cpu(), self.towers[tower].frame
        new = torch.where(pool[at] == old, pool[(at + 1) % len(pool)], pool[at])
        # A vocabulary of one token besides the frame leaves only the frame's.
        return (torch.where(new == old, frame.end, new) if frame else new).to(tokens.device)


def _inner_ids(config: TowerConfig) -> Tensor:
    """Every id but begin and end; 256 of them where there is no vocabulary."""
    ids = list(range(config.vocab_size or 256))
    frame = (config.frame.begin, config.frame.end) if config.frame else ()
    return torch.tensor([i for i in ids if i not in frame] or ids)


def layouts(towers: Sequence[str], rounds: int = 2) -> list[list[str]]:
    """Orders of segments: each tower first, and every tower both before and after every other."""
    return [[*towers[i:], *towers[:i]] * rounds for i in range(len(towers))]


def mixed_rows(zipped: Composition, draws: Draws) -> list[list[Segment]]:
    """One unimodal row for each tower, in the towers' order, and then a multimodal row for each layout."""
    names = list(zipped.graph.towers)
    return [draws.row([name]) for name in names] + [draws.row(layout) for layout in layouts(names)]


def batches(zipped: Composition, seed: int = 0) -> list[Batch]:
    """Small batches with a loss on every tower: each tower alone, each linked direction, and all of them mixed."""
    draws = Draws(zipped.graph.towers, seed)
    directions = dict.fromkeys((site.source, site.target) for site in zipped.graph.sites)
    every = [*([name] for name in zipped.graph.towers), *directions]
    rows = [[draws.row(layout) for _ in range(2)] for layout in every]
    return [to_device(zipped, examples) for examples in (*rows, mixed_rows(zipped, draws))]


def learn(zipped: Composition, model: ZippedModel, batch: Batch) -> None:
    """Add one batch's gradients; none where everything that it runs is frozen."""
    loss = zipped.loss(model(batch), batch)["total"]
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]


def to_device(zipped: Composition, rows: Sequence[Sequence[Segment]]) -> Batch:
    """Rows as a batch where the model is."""
    return zipped.collate(rows).to(next(zipped.model.parameters()).device)


def real(tokens: TowerBatch) -> Tensor:
    """(B, T) bool: not padding."""
    return tokens.order >= 0


def knows(tokens: TowerBatch, causal: bool) -> Tensor:
    """(B, T) the largest order of which a token may know: its own, or its segment's last where the tower is not causal.

    From orders and segments alone, so that a batch's own ``visible`` is not believed.
    """
    if causal:
        return tokens.order
    same_BTT = tokens.segment[:, :, None] == tokens.segment[:, None, :]
    return torch.where(same_BTT, tokens.order[:, None, :], -1).amax(dim=-1)


def position(tower: str, tokens: TowerBatch, row: int, index: int) -> str:
    """A token in words."""
    return f"{tower} position {index} (order {int(tokens.order[row, index])})"


def acting_sites(plan: Plan) -> list[LinkSite]:
    """The sites that the plan runs, in its order."""
    return [op.site for op in plan.ops if op.kind == "read" and op.site is not None]


def through(plan: Plan, target: str, sites: Collection[LinkSite] = ()) -> Plan:
    """A plan for one tower's logits in which only these sites act."""
    towers = {target, *(site.source for site in sites)}
    kept = (
        op
        for op in plan.ops
        if (op.site in sites if op.site else op.tower in towers and (op.kind != "head" or op.tower == target))
    )
    return Plan(tuple(kept), ())
