"""Attention block by block, on a CPU: one call for each step of a staircase, over the keys that it sees and no others.

Nothing of the size (T, S) is kept. The gradient computes each block anew and adds to the keys' in place: slices of one
tensor would each bring a gradient of the whole tensor's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zippkit.batch.staircase import Staircase, Step
from zippkit.model.layers import attend_heads

WASTE = 1 << 12
"""Neighbouring steps share a call while no more (query, key) pairs are computed for nothing than a call is worth."""

MaskOf = Callable[[slice, slice, slice], Tensor]
"""(B, T, S) bool of some rows, queries and keys."""


class Block(NamedTuple):
    """Queries and keys of one call."""

    rows: slice
    queries: slice
    keys: slice
    masked: bool
    """Some query does not see some key."""
    causal: bool = False
    """Each query sees one key more than the one before it, and the first sees one."""


def blocks_of(stairs: Staircase, largest: int) -> Iterator[Block]:
    """Cover what a staircase sees by blocks.

    Args:
        stairs: the staircase.
        largest: most (query, key) pairs of a block that needs a mask.
    """
    group: list[Step] = []
    for step in (Step(*fields) for fields in stairs.steps.tolist()):
        if step.slope == 0 and step.key_stop == step.key_start:
            continue
        if group and not _worth_joining(group, step, largest):
            yield from _cover(group, largest)
            group = []
        group.append(step)
    if group:
        yield from _cover(group, largest)


def blocks_in(shape: tuple[int, int, int], largest: int) -> Iterator[Block]:
    """Cover the whole (B, T, S) by blocks of at most ``largest`` (query, key) pairs, or of one query."""
    n_rows, n_queries, n_keys = shape
    n_together = max(1, largest // max(n_keys, 1))
    rows = max(1, n_together // n_queries)
    for row in range(0, n_rows, rows):
        for query in range(0, n_queries, n_together):
            queries = slice(query, min(query + n_together, n_queries))
            yield Block(slice(row, min(row + rows, n_rows)), queries, slice(0, n_keys), masked=True)


def _worth_joining(group: Sequence[Step], step: Step, largest: int) -> bool:
    box = _box([*group, step])
    wasted = _n_pairs(box) - sum(_n_pairs(each) for each in [*group, step])
    return step.row == group[0].row and wasted <= WASTE and _n_pairs(box) <= largest


def _box(steps: Sequence[Step]) -> Step:
    """The smallest rectangle around some steps of one row, one after the other."""
    last = [step.key_stop + step.slope * (step.query_stop - step.query_start - 1) for step in steps]
    keys = min(step.key_start for step in steps), max(last)
    return Step(steps[0].row, steps[0].query_start, steps[-1].query_stop, *keys)


def _n_pairs(step: Step) -> int:
    n = step.query_stop - step.query_start
    return n * (step.key_stop - step.key_start) + step.slope * n * (n - 1) // 2


def _cover(group: Sequence[Step], largest: int) -> Iterator[Block]:
    box, first = _box(group), group[0]
    rows, keys = slice(box.row, box.row + 1), slice(box.key_start, box.key_stop)
    sloped = any(step.slope for step in group)
    if len(group) == 1 and (not sloped or first.key_stop == first.key_start + 1):
        yield Block(rows, slice(box.query_start, box.query_stop), keys, masked=False, causal=sloped)
        return
    n = max(1, largest // (box.key_stop - box.key_start))
    for query in range(box.query_start, box.query_stop, n):
        yield Block(rows, slice(query, min(query + n, box.query_stop)), keys, masked=True)


def attend_by_blocks(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, blocks: Sequence[Block], mask_of: MaskOf
) -> Tensor:
    """Attention of the queries in ``blocks`` over the keys there, (B, H, T, K); 0 for all other queries."""
    out: Tensor = _Blockwise.apply(q_BHTK, k_BHSK, v_BHSK, blocks, mask_of)  # type: ignore[no-untyped-call]
    return out


def _attend(block: Block, q: Tensor, k: Tensor, v: Tensor, mask_of: MaskOf) -> Tensor:
    mask = None
    if block.masked:
        mask = mask_of(block.rows, block.queries, block.keys)
        mask = mask | ~mask.any(dim=-1, keepdim=True)
    return attend_heads(q, k, v, mask, causal=block.causal)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Block], mask_of: MaskOf) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.blocks, ctx.mask_of = blocks, mask_of
        narrow = torch.is_autocast_enabled("cpu")
        out = q.new_zeros(*q.shape[:3], v.shape[-1], dtype=torch.get_autocast_dtype("cpu") if narrow else q.dtype)
        for block in blocks:
            out[block.rows, :, block.queries] = _attend(block, *_parts(block, q, k, v), mask_of)
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        found = [torch.zeros_like(each) for each in tensors]
        for block in ctx.blocks:
            q, k, v = parts = tuple(part.detach().requires_grad_() for part in _parts(block, *tensors))
            with torch.enable_grad():
                out = _attend(block, q, k, v, ctx.mask_of)
            gradients = torch.autograd.grad(out, parts, gradient[block.rows, :, block.queries])
            for whole, part in zip(_parts(block, *found), gradients, strict=True):
                whole.add_(part)
        return (*found, None, None)


def _parts(block: Block, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, keys = block.rows, block.keys
    return q[rows, :, block.queries], k[rows, :, keys], v[rows, :, keys]
