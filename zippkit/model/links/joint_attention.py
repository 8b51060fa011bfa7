"""Joint attention: layers of several towers attend over the tokens of all.

Mixture-of-Transformers (arXiv 2411.04996); LMFusion (arXiv 2412.15188).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.batch.masks import cross_mask
from zippkit.model.layers import attend
from zippkit.model.links.base import Link, Memory
from zippkit.model.links.configs import JointAttentionConfig


class JointAttention(Link):
    """Hands on the source's keys and values, which the target's layer sees beside its own; nothing of it is trained."""

    Config = JointAttentionConfig
    config: JointAttentionConfig

    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        """Keep keys and values: ``source`` is (B, S, 2, H, K)."""
        return Memory(tokens.visible, (source[:, :, 0], source[:, :, 1]))

    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        """Return the target as it is: its own layer reads the memory, by `attend_jointly`."""
        del tokens, memory
        return target


def attend_jointly(
    queries: Tensor,
    own: tuple[Tensor, Tensor],
    mask: Tensor | None,
    order: Tensor,
    memories: Sequence[Memory],
    start: Tensor | None = None,
) -> Tensor:
    """One softmax over a tower's own keys and those of others.

    Args:
        queries: (B, H, T, K).
        own: the tower's own keys and values, (B, H_kv, S, K) each.
        mask: (B, T, S) of its own keys; None is plain causal.
        order: (B, T) of the tokens that ask.
        memories: keys and values of other towers, (B, S', H_kv, K) each.
        start: (B, T) order of the first token of each one's document, where documents share a row.

    Returns:
        (B, T, H * K); where nothing of the others is seen, it is to the last bit what the tower alone computes.
    """
    alone = attend(queries, *own, mask)
    if not memories:
        return alone
    n = queries.shape[2]
    mine = torch.ones(len(order), n, n, dtype=torch.bool, device=order.device).tril() if mask is None else mask
    theirs = [cross_mask(order, memory.order, start) for memory in memories]
    keys, values = (
        # The softmax is the tower's own, in its own dtype.
        torch.cat([own[i], *(rearrange(m.tensors[i], "b s h k -> b h s k").to(own[i].dtype) for m in memories)], dim=2)
        for i in range(2)
    )
    together = attend(queries, keys, values, torch.cat([mine, *theirs], dim=-1))
    sees = torch.cat(theirs, dim=-1).any(dim=-1, keepdim=True)
    return torch.where(sees, together, alone)
