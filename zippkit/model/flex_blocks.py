"""Attention on a GPU by flex attention, whose block mask is made of the same integers as every other rendering."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Queries, and keys, of a block."""
NARROWEST = 16
"""Least width of a head."""


class Comparison(NamedTuple):
    """What a mask compares, for each of several runs of keys that stand behind each other."""

    start: Tensor
    """(B, T, R)"""
    order: Tensor
    """(B, T, R)"""
    key: Tensor
    """(B, S)"""
    run: Tensor
    """(S,) index of the run that each key belongs to."""


def block_mask(compared: Comparison, limits: tuple[Tensor, Tensor] | None) -> BlockMask:
    """The block mask of ``start <= key < order``.

    Args:
        compared: start, order and key.
        limits: (B, T) the first key that each query sees, and the one behind its last; None where what a query sees is
            not one run, so that no block is known to be empty or full.
    """
    from torch.nn.attention.flex_attention import BlockMask  # takes a second to import

    start, order, key, run = compared
    n_queries, n_keys = order.shape[1], key.shape[1]

    def sees(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        del h
        return (start[b, t, run[s]] <= key[b, s]) & (key[b, s] < order[b, t, run[s]])

    partly, fully = _blocks(limits, len(order), n_queries, n_keys, order.device)
    return BlockMask.from_kv_blocks(
        *_listed(partly), *_listed(fully), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(n_queries, n_keys)
    )


def _blocks(
    limits: tuple[Tensor, Tensor] | None, n_rows: int, n_queries: int, n_keys: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(B, blocks of queries, blocks of keys) bool: blocks of which something is seen, and of which everything is."""
    down, across = -(-n_queries // BLOCK), -(-n_keys // BLOCK)
    if limits is None:
        everywhere = torch.ones(n_rows, down, across, dtype=torch.bool, device=device)
        return everywhere, torch.zeros_like(everywhere)
    first, stop = (_in_blocks(limit, down) for limit in limits)
    blind = first >= stop
    lowest = first.masked_fill(blind, n_keys).amin(dim=-1)[:, :, None]
    highest = stop.masked_fill(blind, 0).amax(dim=-1)[:, :, None]
    begin = BLOCK * torch.arange(across, device=device)
    some = (begin < highest) & (begin + BLOCK > lowest)
    every = (begin >= first.amax(dim=-1)[:, :, None]) & (begin + BLOCK <= stop.amin(dim=-1)[:, :, None])
    return some & ~every, some & every


def _in_blocks(limit: Tensor, n_blocks: int) -> Tensor:
    """(B, T) to (B, blocks, BLOCK); the last query stands for those behind it."""
    missing = n_blocks * BLOCK - limit.shape[1]
    padded = torch.cat([limit, limit[:, -1:].expand(-1, missing)], dim=1)
    return padded.reshape(len(limit), n_blocks, BLOCK)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and their indices first: (B, 1, N) and (B, 1, N, M) int32."""
    indices = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32)[:, None], indices.int()[:, None]


def takes(q_BHTK: Tensor) -> bool:
    """Whether flex attention's kernels take queries of this width and dtype."""
    return q_BHTK.shape[-1] >= NARROWEST and q_BHTK.dtype in (torch.float32, torch.bfloat16, torch.float16)


def attend_by_flex(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: BlockMask) -> Tensor:
    """Attention under a block mask, (B, H, T, K); 0 for queries that see nothing.

    On a CPU, where it is only compared, it holds all scores and has no gradient.
    """
    from torch.nn.attention.flex_attention import flex_attention

    run = _compiled() if q_BHTK.is_cuda and not torch.compiler.is_compiling() else flex_attention
    grouped = q_BHTK.shape[1] != k_BHSK.shape[1]
    out: Tensor = run(q_BHTK, k_BHSK, v_BHSK, block_mask=mask, enable_gqa=grouped)
    return out


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def joined(columns: Sequence[Tensor]) -> Tensor:
    """(B, T) columns of several runs as (B, T, R)."""
    return torch.stack(tuple(columns), dim=-1)
