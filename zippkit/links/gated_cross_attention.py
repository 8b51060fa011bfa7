"""Gated cross-attention followed by a gated feed-forward (Flamingo, arXiv 2204.14198; Zipper, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zippkit.batch import TowerBatch
from zippkit.layers import attend, mlp, rotary_angles, rotate, split_heads, zero_last
from zippkit.links.base import Link, Memory
from zippkit.links.configs import GatedCrossAttentionConfig
from zippkit.masks import cross_mask


class GatedCrossAttention(Link):
    """The design's equation, for a target state u and a source state s::

        a = u + tanh(g_a) * Attn(norm(u), F(s))
        h = a + tanh(g_f) * FFN(norm(a))

    and h = u on blind positions. F is the projection.
    """

    Config = GatedCrossAttentionConfig
    config: GatedCrossAttentionConfig

    def __init__(
        self, config: GatedCrossAttentionConfig, source_dim: int, target_dim: int, projection: nn.Module
    ) -> None:
        super().__init__(config, source_dim, target_dim, projection)
        self.source_norm = nn.RMSNorm(source_dim) if config.norm_source else nn.Identity()
        self.attention_norm = nn.RMSNorm(target_dim)
        self.query = nn.Linear(target_dim, target_dim, bias=False)
        self.key = nn.Linear(target_dim, target_dim, bias=False)
        self.value = nn.Linear(target_dim, target_dim, bias=False)
        self.output = nn.Linear(target_dim, target_dim, bias=False)
        self.feed_forward_norm = nn.RMSNorm(target_dim)
        self.feed_forward = mlp((target_dim, config.ffn_mult * target_dim, target_dim), "gelu")
        self.attention_gate = nn.Parameter(torch.zeros(()))
        self.feed_forward_gate = nn.Parameter(torch.zeros(()))
        if config.start == "zero_outputs":
            nn.init.zeros_(self.output.weight)
            zero_last(self.feed_forward)
            for gate in (self.attention_gate, self.feed_forward_gate):
                nn.init.ones_(gate)

    def _turned(self, x_BTD: Tensor, positions: Tensor) -> Tensor:
        """(B, H, T, K), rotated by positions if the link knows any."""
        x_BHTK = split_heads(x_BTD, self.config.n_heads)
        if self.config.positions == "none":
            return x_BHTK
        return rotate(x_BHTK, rotary_angles(positions, x_BHTK.shape[-1], self.config.rope_theta))

    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        projected_BSD = self.projection(self.source_norm(source))
        key_BHSK = self._turned(self.key(projected_BSD), tokens.positions)
        return Memory(tokens.visible, (key_BHSK.transpose(1, 2), self.value(projected_BSD)))

    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        mask_BTS = cross_mask(tokens.order, memory.order)
        sees_BT1 = mask_BTS.any(dim=-1, keepdim=True)
        key_BSHK, value_BSD = memory.tensors
        # A blind query attends everywhere, so that no kernel meets an empty row; what it finds is thrown away below.
        found_BTD = attend(
            self._turned(self.query(self.attention_norm(target)), tokens.positions),
            key_BSHK.transpose(1, 2),
            split_heads(value_BSD, self.config.n_heads),
            mask_BTS | ~sees_BT1,
        )
        a_BTD = target + torch.tanh(self.attention_gate) * self.output(found_BTD)
        h_BTD = a_BTD + torch.tanh(self.feed_forward_gate) * self.feed_forward(self.feed_forward_norm(a_BTD))
        return torch.where(sees_BT1, h_BTD, target)
