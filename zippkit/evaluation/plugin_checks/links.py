"""`check_link`: whether a link keeps its protocol."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from zippkit.evaluation.certificates.report import some
from zippkit.evaluation.plugin_checks.checks import differs, off, repeated, run_checks, unreached
from zippkit.evaluation.plugin_checks.link_cases import Case, States, small_config
from zippkit.model.layers import mlp
from zippkit.model.links.base import Link, Memory
from zippkit.spec.kinds import LinkConfig

ROWS = ("stst", "tsts", "t", "s", "ts", "st")
"""Segments of source and target: rows in which all, some or no target tokens see something, padding on both sides."""


def check_link(link_class: type[Link], config: LinkConfig, *, source_dim: int = 48, target_dim: int = 64) -> list[str]:
    """Check that a link keeps its protocol (`zippkit.model.links.base.Link`).

    The identity at initialisation and on blind positions, who sees whom, padding and blind rows, gradients, memories
    that are written in pieces, target tokens that are read one at a time. A link at the embedding is the identity on
    the target's own tokens, and fills each place from the segment that it stands for; a link inside attention is
    checked in an attention, and may start as anything where it is not blind; pieces are whole segments for a link that
    reads those. The global random state stays as it is.

    Args:
        link_class: the link.
        config: its settings.
        source_dim: width of the source's states; a link inside attention is given heads of its own.
        target_dim: width of the target's states.

    Returns:
        What could not be checked, and why.

    Raises:
        AssertionError: says in one sentence each what is wrong, everything at once.
        ValueError: the settings do not fit the widths.
    """
    misfits = list(config.misfits(small_config(source_dim), small_config(target_dim)))
    if misfits:
        raise ValueError(f"{'; '.join(misfits)}: give check_link other widths")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widths = (config.projected_dim(source_dim), target_dim, target_dim)
        projection = mlp(widths, "relu") if config.projects else torch.nn.Identity()
        link = link_class(config, source_dim, target_dim, projection).eval()
        return run_checks(link_class.__name__, _CHECKS, Case(link))


@torch.no_grad()
def _shapes(case: Case) -> Iterator[str]:
    states = case.states(*ROWS)
    memory, visible = case.write(case.randomized, states), states.source_tokens.visible
    if case.by_segment and not torch.equal(memory.order.amax(dim=1), visible.amax(dim=1)):
        yield "the memory's last order is not that of the last segment that write was given"
    if not case.by_segment and not torch.equal(memory.order, visible):
        yield "the memory's order is not the one that write was given"
    rows = memory.order.shape if case.by_segment else visible.shape
    for i, tensor in enumerate(memory.tensors):
        if tensor.shape[:2] != rows:
            seen, expected_rows = tuple(tensor.shape), tuple(rows)
            yield f"tensor {i} of the memory has shape {seen}, expected (B, S, ...) with (B, S) = {expected_rows}"
    out, expected = case.read(case.randomized, states, memory), case.alone(states)
    if out.shape != expected.shape:
        yield f"read gives states of shape {tuple(out.shape)}, expected the target's {tuple(expected.shape)}"


@torch.no_grad()
def _identity(case: Case) -> Iterator[str]:
    states = case.states(*ROWS)
    alone, blind = case.alone(states), ~case.sees(states).any(dim=-1)
    if case.acts in ("after_layer", "before_layer") and not torch.equal(case.run(case.link, states), alone):
        yield "read is not the identity at initialisation"
    for row, index in (differs(case.run(case.randomized, states), alone) & blind).nonzero().tolist()[:1]:
        order = int(states.target_tokens.order[row, index])
        what = "padding" if order < 0 else f"order {order}"
        if case.acts == "embedding":
            yield f"read rewrites the target's own tokens: row {row} position {index} ({what})"
        else:
            yield (
                "read rewrites a blind position, that no source token comes before: "
                f"row {row} position {index} ({what})"
            )


@torch.no_grad()
def _earlier_orders_only(case: Case) -> Iterator[str]:
    one = case.states("tststt")
    sees, moved = case.sees(one)[0], _moved_by_each(case, one)
    for key, query in (moved & ~sees.T).nonzero().tolist()[:1]:
        reader, source = int(one.target_tokens.order[0, query]), int(one.source_tokens.order[0, key])
        if case.acts == "embedding":
            segments = (
                int(tokens.segment[0, i]) for tokens, i in ((one.target_tokens, query), (one.source_tokens, key))
            )
            yield "a place of segment {} changes when a token of segment {} does".format(*segments)
        else:
            seen = f"the target token of order {reader} sees the source token of order {source}"
            yield f"{seen}; expected earlier ones only"
    if not moved.any():
        yield "read does not depend on the source at all, so nothing is shown"


def _moved_by_each(case: Case, one: States) -> Tensor:
    """(S, T) bool: which target states of a single row change when each source state does."""
    n = one.source.shape[1]
    before = States(
        one.source.expand(n, -1, -1),
        one.target.expand(n, -1, -1),
        repeated(one.source_tokens, n),
        repeated(one.target_tokens, n),
    )
    return differs(case.run(case.randomized, before), case.run(case.randomized, before.moved(source=torch.eye(n))))


@torch.no_grad()
def _places(case: Case) -> Iterator[str]:
    if case.acts != "embedding":
        return
    states = case.states(*ROWS)
    left = ~differs(case.run(case.randomized, states), states.target) & states.target_tokens.inserted
    for row, index in left.nonzero().tolist()[:1]:
        yield f"a place stays empty: row {row} place {int(states.target_tokens.offset[row, index])} of its segment"
    # The source may itself have been given places, which stand for segments of a third tower.
    strange = replace(states.source_tokens, inserted=states.source_tokens.order >= 0)
    states = replace(states, source_tokens=strange)
    if differs(case.run(case.randomized, states), states.target).any():
        yield "what is inserted into the source is taken for a segment of the source (`TowerBatch.inserted`)"


@torch.no_grad()
def _rows_apart(case: Case) -> Iterator[str]:
    states = case.states(*ROWS)
    before = case.run(case.randomized, states)
    for row in range(len(ROWS)):
        here = torch.zeros(len(ROWS), 1, dtype=torch.bool)
        here[row] = True
        moved = (differs(before, case.run(case.randomized, states.moved(here, here))) & ~here).nonzero()
        if len(moved):
            yield f"row {int(moved[0, 0])} changes when row {row} of the batch does"
            return


@torch.no_grad()
def _padding(case: Case) -> Iterator[str]:
    states = case.states(*ROWS)
    after = states.moved(source=states.source_tokens.order < 0)
    if differs(case.run(case.randomized, states), case.run(case.randomized, after)).any():
        yield "the source's padding is read"


@torch.no_grad()
def _in_pieces(case: Case) -> Iterator[str]:
    for row in ("stst", "tsts"):
        found = list(_pieces_of(case, case.states(row)))
        yield from found
        if found:
            return


def _pieces_of(case: Case, states: States) -> Iterator[str]:
    link, segment = case.randomized, states.source_tokens.segment[0]
    memory = case.write(link, states)
    middle = int((segment == segment[0]).sum()) if case.by_segment else len(segment) // 2
    whole = case.read(link, states, memory)
    everywhere = torch.ones_like(states.target_tokens.order)
    pieces = [case.write(link, states, part, n_segments=1) for part in (slice(0, middle), slice(middle, None))]
    if found := off(case.read(link, states, Memory.join(pieces)), whole, everywhere):
        yield f"a memory that is written in two pieces and joined reads otherwise: {found}"
    single = [case.read(link, states, memory, slice(i, i + 1)) for i in range(everywhere.shape[1])]
    if found := off(torch.cat(single, dim=1), whole, everywhere):
        yield f"one target token at a time reads otherwise than all at once: {found}"


def _finite(case: Case) -> Iterator[str]:
    link, states = copy.deepcopy(case.randomized), case.states(*ROWS)
    inputs = {"source": states.source.requires_grad_(), "target": states.target.requires_grad_()}
    out = case.run(link, states)
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


_CHECKS = (_shapes, _identity, _earlier_orders_only, _places, _rows_apart, _padding, _in_pieces, _finite)
