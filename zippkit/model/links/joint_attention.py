"""Joint attention: layers of several towers attend over the tokens of all.

Mixture-of-Transformers (arXiv 2411.04996); LMFusion (arXiv 2412.15188).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from einops import rearrange
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.model.layers import attend
from zippkit.model.links.base import Link, Memory
from zippkit.model.links.configs import JointAttentionConfig
from zippkit.model.sight import slots
from zippkit.model.visibility import Visibility, attend_seen, visibility_of


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
    mask: Tensor | Visibility | None,
    tokens: TowerBatch,
    memories: Sequence[Memory],
) -> Tensor:
    """One softmax over a tower's own keys and those of others.

    Args:
        queries: (B, H, T, K).
        own: the tower's own keys and values, (B, H_kv, S, K) each.
        mask: of its own keys, a table (B, T, S) or a description; None is plain causal.
        tokens: those that ask, (B, T) each.
        memories: keys and values of other towers, (B, S', H_kv, K) each.

    Returns:
        (B, T, H * K); where nothing of the others is seen, it is to the last bit what the tower alone computes.
    """
    alone = attend_seen(queries, *own, mask)
    if not memories:
        return alone
    theirs = [visibility_of(tokens, memory.order) for memory in memories]
    keys, values = (
        # The softmax is the tower's own, in its own dtype.
        torch.cat([own[i], *(rearrange(m.tensors[i], "b s h k -> b h s k").to(own[i].dtype) for m in memories)], dim=2)
        for i in range(2)
    )
    if isinstance(mask, Tensor):
        together = attend(queries, keys, values, torch.cat([mask, *(each.table() for each in theirs)], dim=-1))
    else:
        together = _jointly(mask, tokens, memories, theirs).attend(queries, keys, values)
    return torch.where(reduce(torch.logical_or, (each.sees for each in theirs)), together, alone)


def _jointly(
    own: Visibility | None, tokens: TowerBatch, memories: Sequence[Memory], theirs: Sequence[Visibility]
) -> Visibility:
    """What is seen of a tower's own keys and of others behind them; made once for all layers."""
    mine = (slots(tokens),) if own is None else own.sights

    def make() -> Visibility:
        return Visibility([*mine, *(sight for each in theirs for sight in each.sights)])

    return tokens.once(("jointly", len(memories)), (tokens.order, *(memory.order for memory in memories)), make)
