"""Who sees whom, as attention takes it: one description, rendered in whatever way suits its size and the device.

A query sees the keys with ``start <= key < order``. That is all that a mask says, of links and of a tower's own
tokens:

    link              orders in the whole sequence; ``start`` is the order of the document's first token
    causal tower      slots: those before, from the first slot of the document on
    other tower       segments: the own one

The renderings, which agree:

    nothing           every query sees every key
    a row             (B, 1, S) bool: all queries of a row see the same keys
    a table           (B, T, S) bool, while it is small
    blocks            on a CPU, a call for each step of the staircase: no table, nothing computed for what is hidden
    flex              on a GPU, flex attention with a block mask of the same integers

Which one is taken depends on integers that the host knew before the step. What no key is visible to gets an arbitrary
finite value; the caller discards it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.batch.masks import cache_mask
from zippkit.batch.staircase import Staircase
from zippkit.model.attention_blocks import Block, attend_by_blocks, blocks_in, blocks_of
from zippkit.model.flex_blocks import Comparison, attend_by_flex, block_mask, joined, takes
from zippkit.model.layers import attend, attend_heads, join_heads
from zippkit.model.sight import ALL, Sight, slots

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

LARGEST_TABLE = 1 << 22
"""Most entries (B, T, S) of a table on a CPU."""
MASKED_BLOCK = 1 << 20
"""Most entries (T, S) of a block's table."""
FLEX_FROM = 1 << 20
"""Entries (T, S) from which a GPU takes flex attention."""

Rendering = Literal["nothing", "row", "table", "blocks", "flex"]


class Visibility:
    """What queries see of keys, in one run or in several behind each other, and attention over them."""

    def __init__(self, sights: Sequence[Sight], largest_table: int | None = None, static: bool = False) -> None:
        """Keep what is compared.

        Args:
            sights: one for each run of keys.
            largest_table: most entries of a table; `LARGEST_TABLE` if left out.
            static: render in one way for all batches of a shape, and at once: for compiled layers and sites.
        """
        self.sights = tuple(sights)
        self.largest_table = LARGEST_TABLE if largest_table is None else largest_table
        n_rows, n_queries = self.sights[0].order.shape
        self.shape = n_rows, n_queries, sum(sight.key.shape[1] for sight in self.sights)
        self.stairs = self.sights[0].stairs if len(self.sights) == 1 else None
        self.rendering = self._chosen(static)
        """How attention renders it."""
        self._mask: Tensor | None = None
        self._sees: Tensor | None = None
        self._blocks: list[Block] = []
        self._block_mask: BlockMask | None = None
        if static:
            _ = self.block_mask if self.rendering == "flex" else self.mask
            _ = self.sees

    def _chosen(self, static: bool) -> Rendering:
        # A compiled step never asks for what differs between batches of one shape.
        compiling, stairs, device = torch.compiler.is_compiling(), self.stairs, self.sights[0].order.device.type
        if stairs is not None and stairs.alike and not static:
            return "nothing" if not compiling and stairs.whole else "row"
        _, n_queries, n_keys = self.shape
        if device == "cuda" and n_queries * n_keys >= FLEX_FROM:
            return "flex"
        large = prod(self.shape) > self.largest_table
        return "blocks" if device == "cpu" and large and not compiling and not static else "table"

    def table(self, rows: slice = ALL, queries: slice = ALL, keys: slice = ALL) -> Tensor:
        """(B, T, S) bool, or a part of it, whatever it costs."""
        if len(self.sights) == 1:
            return self.sights[0].table(rows, queries, keys)
        return torch.cat([sight.table(rows, queries) for sight in self.sights], dim=-1)[:, :, keys]

    @property
    def mask(self) -> Tensor | None:
        """(B, T or 1, S) bool in which every query sees something; None where every key is seen.

        A query that sees nothing attends to every key, so that no kernel meets an empty row.
        """
        if self._mask is None and self.rendering != "nothing":
            row = self.rendering == "row"
            mask = self.sights[0].row() if row else self.table()
            any_key = mask.any(dim=-1, keepdim=True)
            self._mask = mask | ~any_key
            self._sees = any_key & self._real() if row else any_key
        return self._mask

    @property
    def sees(self) -> Tensor:
        """(B, T, 1) bool: the query sees something; padding, of which the order is -1, does not."""
        if self._sees is None and self.rendering in ("row", "table"):
            _ = self.mask
        if self._sees is None:
            self._sees = self._real() if self.rendering == "nothing" else self._any()
        return self._sees

    def _real(self) -> Tensor:
        return (self.sights[0].order >= 0)[:, :, None]

    def _any(self) -> Tensor:
        first, *others = self.sights
        return reduce(torch.logical_or, (sight.any() for sight in others), first.any())[:, :, None]

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
        """Attention, heads joined again: (B, T, H * K); arbitrary finite values for queries that see nothing."""
        match self.rendering:
            case "blocks":
                heads = attend_by_blocks(q_BHTK, k_BHSK, v_BHSK, self.blocks, self.table)
            case "flex" if takes(q_BHTK):
                heads = attend_by_flex(q_BHTK, k_BHSK, v_BHSK, self.block_mask)
            case _:
                heads = attend_heads(q_BHTK, k_BHSK, v_BHSK, self.mask)
        return join_heads(heads)

    @property
    def blocks(self) -> list[Block]:
        """Blocks that cover everything that is seen."""
        if not self._blocks:
            found = blocks_in(self.shape, MASKED_BLOCK) if self.stairs is None else blocks_of(self.stairs, MASKED_BLOCK)
            self._blocks = list(found)
        return self._blocks

    @property
    def block_mask(self) -> BlockMask:
        """The block mask of flex attention."""
        if self._block_mask is None:
            starts = [torch.zeros_like(s.order) if s.start is None else s.start for s in self.sights]
            run = torch.cat([torch.full_like(sight.key[0], i) for i, sight in enumerate(self.sights)])
            key = torch.cat([sight.key for sight in self.sights], dim=1)
            compared = Comparison(joined(starts), joined([sight.order for sight in self.sights]), key, run)
            limits = self.sights[0].limits() if self.stairs is not None else None
            self._block_mask = block_mask(compared, limits)
        return self._block_mask


Mask = Tensor | Visibility | None
"""Of a tower's own tokens: a table (B, T, S), a description, or None, which is plain causal."""


def attend_seen(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Mask) -> Tensor:
    """Attention under a mask of whatever form, heads joined again: (B, T, H * K)."""
    if isinstance(mask, Visibility):
        return mask.attend(q_BHTK, k_BHSK, v_BHSK)
    return attend(q_BHTK, k_BHSK, v_BHSK, mask)


def visibility_of(tokens: TowerBatch, key_order: Tensor) -> Visibility:
    """What a target's tokens see of a memory: those of their document before them.

    Made once in a forward pass for all sites that see the same keys.

    Args:
        tokens: the target's, (B, T) each.
        key_order: (B, S) order from which each entry is visible (`zippkit.model.links.base.Memory.order`).
    """

    def make() -> Visibility:
        sight = Sight(tokens.order, key_order, tokens.document_start, _stairs(tokens, key_order))
        return Visibility([sight], static=tokens.static)

    return tokens.once("visibility", (tokens.order, tokens.start, key_order), make)


def own_visibility(tokens: TowerBatch, causal: bool) -> Visibility | None:
    """What a tower's tokens see of each other; None is plain causal attention.

    Args:
        tokens: the tower's, (B, T) each.
        causal: whether they see those before them in their document, or their whole segment.
    """
    if causal and not tokens.packed:
        return None

    def make() -> Visibility:
        if causal:
            return Visibility([slots(tokens)], static=tokens.static)
        sight = Sight(tokens.segment + 1, tokens.segment, tokens.segment, tokens.own_stairs)
        return Visibility([sight], static=tokens.static)

    return tokens.once("own visibility", (tokens.segment, tokens.start), make)


def cache_visibility(tokens: TowerBatch) -> Tensor | Visibility:
    """What new tokens see of their tower's KV cache: the slots up to their own.

    Args:
        tokens: the tower's new ones, (B, T) each, with ``n_slots``.

    Returns:
        A table (B, T, S) while it is small.
    """
    if tokens.branches is not None:
        return tokens.branches.sees
    n_rows, n = tokens.positions.shape
    if n_rows * n * tokens.n_slots <= LARGEST_TABLE or torch.compiler.is_compiling():
        return cache_mask(tokens.positions, tokens.n_slots)
    slot = torch.arange(tokens.n_slots, device=tokens.positions.device).expand(n_rows, -1)
    # A prompt's first slots are its places, so that it sees what it would without a cache.
    stairs = tokens.own_stairs if n == tokens.n_slots else None
    return Visibility([Sight(tokens.positions + 1, slot, None, stairs)])


def _stairs(tokens: TowerBatch, key_order: Tensor) -> Staircase | None:
    """The staircase of these very tokens over these very keys, if it is known."""
    source = None if tokens.shared is None else tokens.shared.tower_of(key_order)
    return None if source is None else tokens.stairs.get(source)
