"""Inputs of `check_link`: a link between random source and target states, laid out as in a composition."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.batch.collate import collate
from zippkit.batch.masks import cross_mask
from zippkit.evaluation.certificates.probe import Draws, jitter
from zippkit.model.layers import split_heads
from zippkit.model.links.base import Link, Memory
from zippkit.model.links.joint_attention import attend_jointly
from zippkit.plan.sequence_layout import Insert, SequenceLayout
from zippkit.spec.kinds import Frame, TowerConfig

QUERY_HEADS, HEADS, HEAD_WIDTH = 4, 2, 8
"""Head counts and width of the layer in which a link inside attention is checked."""


def small_config(dim: int) -> TowerConfig:
    """A tower of one layer and that width."""
    return TowerConfig(dim=dim, n_layers=1, vocab_size=9, frame=Frame(begin=0, end=1))


@dataclass(frozen=True)
class States:
    """Source and target states, with their tokens."""

    source: Tensor
    """(B, S, source_dim); for a link inside attention, keys and values as (B, S, 2 * H * K)."""
    target: Tensor
    """(B, T, target_dim); for a link inside attention, queries, keys and values of the target's layer, flat."""
    source_tokens: TowerBatch
    target_tokens: TowerBatch

    def moved(self, source: Tensor | None = None, target: Tensor | None = None) -> Self:
        """Other states wherever the (B, S) and (B, T) masks say so."""
        return replace(self, source=_noisy(self.source, source), target=_noisy(self.target, target))

    def row(self, index: int) -> Self:
        """Return one row as a batch of size 1."""
        rows = slice(index, index + 1)
        tokens = (each.mapped(lambda column: column[rows]) for each in (self.source_tokens, self.target_tokens))
        return type(self)(self.source[rows], self.target[rows], *tokens)


def _noisy(states: Tensor, where: Tensor | None) -> Tensor:
    if where is None:
        return states
    return states + where[:, :, None] * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))


class Case:
    """A link as it was built, and a copy of it that is not the identity."""

    def __init__(self, link: Link) -> None:
        self.link, self.acts, self.by_segment = link, link.config.acts, link.config.by_segment
        self.randomized = copy.deepcopy(link)
        jitter(p for p in self.randomized.parameters() if p.requires_grad)
        self.dims = {"s": link.source_dim, "t": link.target_dim}
        if self.acts == "attention":
            self.dims = {"s": 2 * HEADS * HEAD_WIDTH, "t": (QUERY_HEADS + 2 * HEADS) * HEAD_WIDTH}

    def states(self, *rows: str) -> States:
        """Random states; a row such as ``sts`` is a source's segment, a target's, and a source's again."""
        configs = {name: small_config(dim) for name, dim in self.dims.items()}
        draws, generator = Draws(configs), torch.Generator().manual_seed(0)
        inserts = (Insert("s", "t", self.link.config.n_slots),) if self.acts == "embedding" else ()
        batch = collate([draws.row(list(row)) for row in rows], configs, layout=SequenceLayout(inserts)).towers
        source, target = (
            torch.randn(*batch[name].tokens.shape, dim, generator=generator) for name, dim in self.dims.items()
        )
        return States(source, target, batch["s"], batch["t"])

    def sees(self, states: States) -> Tensor:
        """(B, T, S) bool: which target tokens a source token may change."""
        source, target = states.source_tokens, states.target_tokens
        if self.acts != "embedding":
            return cross_mask(target.order, source.visible)
        same = target.segment[:, :, None] == source.segment[:, None, :]
        return same & target.inserted[:, :, None] & ~source.inserted[:, None, :]

    def write(self, link: Link, states: States, part: slice = slice(None), n_segments: int | None = None) -> Memory:
        """The memory of the source tokens, or of a run of them that holds so many segments."""
        source, tokens = states.source[:, part], states.source_tokens.part(part)
        if self.acts == "attention":
            source = source.reshape(*source.shape[:2], 2, HEADS, HEAD_WIDTH)
        return link.write(source, tokens if n_segments is None else replace(tokens, n_segments=n_segments))

    def read(self, link: Link, states: States, memory: Memory | None, part: slice = slice(None)) -> Tensor:
        """Return the target states, or a slice of them, after reading the memory; without a memory, as they are."""
        tokens = states.target_tokens.part(part)
        if self.acts == "attention":
            return _attended(states.target, part, tokens, memory)
        target = states.target[:, part]
        return target if memory is None else link.read(target, tokens, memory)

    def run(self, link: Link, states: States) -> Tensor:
        """Let a link write its memory from the source and read it in the target."""
        return self.read(link, states, self.write(link, states))

    def alone(self, states: States) -> Tensor:
        """Return the target states at positions that see nothing of the source."""
        return self.read(self.link, states, None)


def _attended(target: Tensor, part: slice, tokens: TowerBatch, memory: Memory | None) -> Tensor:
    heads_BHTK = split_heads(target, QUERY_HEADS + 2 * HEADS)
    queries, keys, values = heads_BHTK.tensor_split([QUERY_HEADS, QUERY_HEADS + HEADS], dim=1)
    n = target.shape[1]
    mask = torch.ones(n, n, dtype=torch.bool).tril()[part].expand(len(target), -1, -1)
    return attend_jointly(queries[:, :, part], (keys, values), mask, tokens, [] if memory is None else [memory])
