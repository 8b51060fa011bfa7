"""Gated cross-attention and a gated feed-forward (Flamingo, arXiv 2204.14198; Zipper, arXiv 2405.18669)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zippkit.training.hf_parts.attending import Attending
from zippkit.training.hf_parts.layers import mlp
from zippkit.training.hf_parts.sequence import Memory, Tokens


class GatedCrossAttention(Attending):
    """For a target state u and a source state s, with F the projection.

    ::

        a = u + tanh(g_a) * Attn(norm(u), F(norm(s)))
        h = a + tanh(g_f) * FFN(norm(a))
    """

    def __init__(self, settings: dict[str, Any], source_dim: int, target_dim: int) -> None:
        super().__init__(settings, source_dim, target_dim)
        self.feed_forward_norm = nn.RMSNorm(target_dim)
        self.feed_forward = mlp((target_dim, settings["ffn_mult"] * target_dim, target_dim), "gelu")
        self.attention_gate, self.feed_forward_gate = self._gate(), self._gate()

    def _gate(self) -> nn.Parameter | None:
        if self.settings["gate"] == "none":
            return None
        return nn.Parameter(torch.zeros(() if self.settings["gate"] == "scalar" else (self.target_dim,)))

    def read(self, target: Tensor, tokens: Tokens, memory: Memory) -> Tensor:
        """Compute h, (B, T, D)."""
        a_BTD = target + gated(self.attention_gate, self.found(target, tokens, memory))
        return a_BTD + gated(self.feed_forward_gate, self.feed_forward(self.feed_forward_norm(a_BTD)))


def gated(gate: Tensor | None, x_BTD: Tensor) -> Tensor:
    """States behind a tanh gate, if there is one."""
    return x_BTD if gate is None else torch.tanh(gate) * x_BTD
