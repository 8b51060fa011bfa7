"""`check_link`: whether a link keeps its protocol."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from zippkit.batch import TowerBatch, collate
from zippkit.certificates.probe import Draws, jitter
from zippkit.certificates.report import some
from zippkit.config import Frame, LinkConfig, TowerConfig
from zippkit.layers import mlp
from zippkit.links.base import Link, Memory
from zippkit.masks import cross_mask
from zippkit.testing.checks import differs, off, repeated, run_checks, unreached

ROWS = ("stst", "tsts", "t", "s", "ts", "st")
"""Segments of source and target: rows in which all, some or no target tokens see something, padding on both sides."""


def check_link(link_class: type[Link], config: LinkConfig, *, source_dim: int = 48, target_dim: int = 64) -> list[str]:
    """Check that a link keeps its protocol (`zippkit.links.base.Link`).

    The identity at initialisation and on blind positions, who sees whom, padding and blind rows, gradients, memories
    that are written in pieces, target tokens that are read one at a time. The global random state stays as it is.

    Args:
        link_class: the link.
        config: its settings.
        source_dim: width of the source's states.
        target_dim: width of the target's states.

    Returns:
        What could not be checked, and why.

    Raises:
        AssertionError: says in one sentence each what is wrong, everything at once.
        ValueError: the settings do not fit the widths.
    """
    misfits = list(config.misfits(_config(source_dim), _config(target_dim)))
    if misfits:
        raise ValueError(f"{'; '.join(misfits)}: give check_link other widths")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projection = mlp((source_dim, target_dim, target_dim), "relu")
        link = link_class(config, source_dim, target_dim, projection).eval()
        return run_checks(link_class.__name__, _CHECKS, _Case(link))


def _config(dim: int) -> TowerConfig:
    return TowerConfig(dim=dim, n_layers=1, vocab_size=9, frame=Frame(begin=0, end=1))


@dataclass(frozen=True)
class _States:
    """Source and target states, with their orders and positions."""

    source: Tensor
    """(B, S, source_dim)"""
    target: Tensor
    """(B, T, target_dim)"""
    source_tokens: TowerBatch
    target_tokens: TowerBatch

    @property
    def sees(self) -> Tensor:
        """(B, T, S) bool: which target tokens may see which source tokens."""
        return cross_mask(self.target_tokens.order, self.source_tokens.visible)

    def moved(self, source: Tensor | None = None, target: Tensor | None = None) -> Self:
        """Other states wherever the (B, S) and (B, T) masks say so."""
        return replace(self, source=_noisy(self.source, source), target=_noisy(self.target, target))


def _noisy(states: Tensor, where: Tensor | None) -> Tensor:
    if where is None:
        return states
    return states + where[:, :, None] * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))


class _Case:
    """A link as it was built, and a copy of it that is not the identity."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.woken = copy.deepcopy(link)
        jitter(p for p in self.woken.parameters() if p.requires_grad)

    def states(self, *rows: str) -> _States:
        """Random states; a row such as ``sts`` is a source's segment, a target's, and a source's again."""
        configs = {"s": _config(self.link.source_dim), "t": _config(self.link.target_dim)}
        draws, generator = Draws(configs), torch.Generator().manual_seed(0)
        batch = collate([draws.row(list(row)) for row in rows], configs).towers
        source, target = (
            torch.randn(*batch[name].tokens.shape, config.dim, generator=generator) for name, config in configs.items()
        )
        return _States(source, target, batch["s"], batch["t"])


def _write(link: Link, states: _States, part: slice = slice(None)) -> Memory:
    """The memory of the source tokens, or of a run of them."""
    return link.write(states.source[:, part], states.source_tokens.part(part))


def _read(link: Link, states: _States, memory: Memory, part: slice = slice(None)) -> Tensor:
    """What becomes of the target states, or of a run of them."""
    return link.read(states.target[:, part], states.target_tokens.part(part), memory)


def _run(link: Link, states: _States) -> Tensor:
    return _read(link, states, _write(link, states))


@torch.no_grad()
def _shapes(case: _Case) -> Iterator[str]:
    states = case.states(*ROWS)
    memory, visible = _write(case.woken, states), states.source_tokens.visible
    if not torch.equal(memory.order, visible):
        yield "the memory's order is not the one that write was given"
    for i, tensor in enumerate(memory.tensors):
        if tensor.shape[:2] != visible.shape:
            seen, expected = tuple(tensor.shape), tuple(visible.shape)
            yield f"tensor {i} of the memory has shape {seen}, expected (B, S, ...) with (B, S) = {expected}"
    out = _read(case.woken, states, memory)
    if out.shape != states.target.shape:
        yield f"read gives states of shape {tuple(out.shape)}, expected the target's {tuple(states.target.shape)}"


@torch.no_grad()
def _identity(case: _Case) -> Iterator[str]:
    states = case.states(*ROWS)
    if not torch.equal(_run(case.link, states), states.target):
        yield "read is not the identity at initialisation"
    blind = ~states.sees.any(dim=-1)
    for row, index in (differs(_run(case.woken, states), states.target) & blind).nonzero().tolist()[:1]:
        order = int(states.target_tokens.order[row, index])
        what = "padding" if order < 0 else f"order {order}"
        yield f"read rewrites a blind position, that no source token comes before: row {row} position {index} ({what})"


@torch.no_grad()
def _earlier_orders_only(case: _Case) -> Iterator[str]:
    one = case.states("tststt")
    n = one.source.shape[1]
    before = _States(
        one.source.expand(n, -1, -1),
        one.target.expand(n, -1, -1),
        repeated(one.source_tokens, n),
        repeated(one.target_tokens, n),
    )
    after = before.moved(source=torch.eye(n))
    moved = differs(_run(case.woken, before), _run(case.woken, after))
    for key, query in (moved & ~one.sees[0].T).nonzero().tolist()[:1]:
        reader, source = int(one.target_tokens.order[0, query]), int(one.source_tokens.order[0, key])
        yield f"the target token of order {reader} sees the source token of order {source}; expected earlier ones only"
    if not moved.any():
        yield "read does not depend on the source at all, so nothing is shown"


@torch.no_grad()
def _rows_apart(case: _Case) -> Iterator[str]:
    states = case.states(*ROWS)
    before = _run(case.woken, states)
    for row in range(len(ROWS)):
        here = torch.zeros(len(ROWS), 1, dtype=torch.bool)
        here[row] = True
        moved = (differs(before, _run(case.woken, states.moved(here, here))) & ~here).nonzero()
        if len(moved):
            yield f"row {int(moved[0, 0])} changes when row {row} of the batch does"
            return


@torch.no_grad()
def _padding(case: _Case) -> Iterator[str]:
    states = case.states(*ROWS)
    after = states.moved(source=states.source_tokens.order < 0)
    if differs(_run(case.woken, states), _run(case.woken, after)).any():
        yield "the source's padding is read"


@torch.no_grad()
def _in_pieces(case: _Case) -> Iterator[str]:
    link, states = case.woken, case.states("stst", "tsts")
    memory, middle = _write(link, states), states.source.shape[1] // 2
    whole = _read(link, states, memory)
    everywhere = torch.ones_like(states.target_tokens.order)
    joined = Memory.join([_write(link, states, part) for part in (slice(0, middle), slice(middle, None))])
    if found := off(_read(link, states, joined), whole, everywhere):
        yield f"a memory that is written in two pieces and joined reads otherwise: {found}"
    single = [_read(link, states, memory, slice(i, i + 1)) for i in range(everywhere.shape[1])]
    if found := off(torch.cat(single, dim=1), whole, everywhere):
        yield f"one target token at a time reads otherwise than all at once: {found}"


def _finite(case: _Case) -> Iterator[str]:
    link, states = copy.deepcopy(case.woken), case.states(*ROWS)
    inputs = {"source": states.source.requires_grad_(), "target": states.target.requires_grad_()}
    out = _run(link, states)
    if not out.isfinite().all():
        yield "states are not finite, with blind rows and padding in the batch"
    out.square().sum().backward()  # type: ignore[no-untyped-call]
    grads = {name: tensor.grad for name, tensor in (*inputs.items(), *link.named_parameters())}
    bad = [name for name, grad in grads.items() if grad is not None and not grad.isfinite().all()]
    if bad:
        yield f"gradients are not finite, with blind rows and padding in the batch: {some(bad)}"
    missed = unreached(link)
    if missed:
        yield f"no gradient reaches {some(missed)}"


_CHECKS = (_shapes, _identity, _earlier_orders_only, _rows_apart, _padding, _in_pieces, _finite)
