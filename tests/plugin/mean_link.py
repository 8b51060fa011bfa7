"""A link that adds the mean of what the source has said so far, through a gate that starts at zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zippkit import Link, LinkConfig, Memory, TowerBatch
from zippkit.batch.masks import cross_mask


class Mean(Link):
    """``h = u + gate * mean(F(s))`` over the source tokens before each target token."""

    class Config(LinkConfig):
        """Nothing to set: the spec's ``projection:`` is all."""

    def __init__(self, config: Config, source_dim: int, target_dim: int, projection: nn.Module) -> None:
        super().__init__(config, source_dim, target_dim, projection)
        self.gate = nn.Parameter(torch.zeros(()))

    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        return Memory(tokens.visible, (self.projection(source),))

    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        seen = cross_mask(tokens.order, memory.order, tokens.document_start).to(target.dtype)
        total = seen @ memory.tensors[0]
        return target + self.gate * total / seen.sum(dim=-1, keepdim=True).clamp(min=1)
