"""A prefix: the source's tokens stand, stacked and projected, in the target's own sequence.

SLAM-ASR (arXiv 2402.08846).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.model.layers import Dropout
from zippkit.model.links.base import Link, Memory
from zippkit.model.links.configs import PrefixConfig


class Prefix(Link):
    """Slot ``j`` of a segment is the projection of its tokens ``k j`` to ``k j + k - 1``, side by side."""

    Config = PrefixConfig
    config: PrefixConfig

    def __init__(self, config: PrefixConfig, source_dim: int, target_dim: int, projection: nn.Module) -> None:
        super().__init__(config, source_dim, target_dim, projection)
        self.source_norm = nn.RMSNorm(source_dim) if config.norm_source else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        """Keep the normed states (B, S, D) and their segments (B, S)."""
        # A slot that another link has inserted into the source stands for no segment of the source.
        own_BS = torch.where(tokens.inserted, -1, tokens.segment)
        return Memory(tokens.visible, (self.source_norm(source), own_BS))

    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        """Fill the inserted slots with their stacked and projected tokens."""
        source_BSD, segment_BS = entries(memory)
        k = self.config.stack
        first_BT = first_of_segment(tokens, segment_BS)
        index_BTk = (first_BT + k * tokens.offset)[:, :, None] + torch.arange(k, device=first_BT.device)
        stacked_BTkD, there_BTk = pick(source_BSD, segment_BS, tokens, index_BTk)
        states_BTD = self.dropout(self.projection(rearrange(stacked_BTkD, "b t k d -> b t (k d)")))
        return put(target, states_BTD, there_BTk)


def entries(memory: Memory) -> tuple[Tensor, Tensor]:
    """Unpack a memory: (B, S, D) states, and (B, S) the segment of each; -1 at padding."""
    held_BSD, segment_BS = memory.tensors
    return held_BSD, torch.where(memory.order >= 0, segment_BS, -1)


def first_of_segment(tokens: TowerBatch, segment_BS: Tensor) -> Tensor:
    """Find where in a memory each slot's segment begins, (B, T); arbitrary where it is not there.

    A memory's segments are in order, with entries of none (-1) between and behind them.
    """
    return torch.searchsorted(segment_BS.cummax(dim=1).values, tokens.segment.contiguous())


def pick(source_BSD: Tensor, segment_BS: Tensor, tokens: TowerBatch, index_BTk: Tensor) -> tuple[Tensor, Tensor]:
    """Gather a memory's entries for each slot of the target, if they are of the segment that the slot stands for.

    Returns:
        (B, T, k, D) entries, 0 where there is none, and (B, T, k) bool: there is one.
    """
    inside_BTk = index_BTk.clamp(max=segment_BS.shape[1] - 1)
    flat, k = rearrange(inside_BTk, "b t k -> b (t k)"), index_BTk.shape[-1]
    segment_BTk = rearrange(segment_BS.gather(1, flat), "b (t k) -> b t k", k=k)
    there_BTk = (index_BTk == inside_BTk) & (segment_BTk == tokens.segment[:, :, None]) & tokens.inserted[:, :, None]
    found = source_BSD.gather(1, flat[:, :, None].expand(-1, -1, source_BSD.shape[-1]))
    found_BTkD = rearrange(found, "b (t k) d -> b t k d", k=k)
    return torch.where(there_BTk[..., None], found_BTkD, torch.zeros_like(found_BTkD)), there_BTk


def put(target_BTD: Tensor, states_BTD: Tensor, there_BTk: Tensor) -> Tensor:
    """Add the slots' states to the target's; an empty slot holds nothing but its position."""
    return target_BTD + torch.where(there_BTk[:, :, :1], states_BTD, torch.zeros_like(states_BTD))
