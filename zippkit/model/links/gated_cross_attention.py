"""Gated cross-attention followed by a gated feed-forward (Flamingo, arXiv 2204.14198; Zipper, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.model.layers import mlp, zero_last
from zippkit.model.links.attending import Attending, where_seen
from zippkit.model.links.attending_form import GatedForm, can_fold
from zippkit.model.links.base import LinkForm, Memory
from zippkit.model.links.configs import GatedCrossAttentionConfig


class GatedCrossAttention(Attending):
    """Cross-attention and a feed-forward, each behind a gate: the design's equation.

    For a target state u and a source state s::

        a = u + tanh(g_a) * Attn(norm(u), F(s))
        h = a + tanh(g_f) * FFN(norm(a))

    and h = u on blind positions. F is the projection. Without gates, their tanh is left out. Dropout, in training, acts
    on what the attention and the feed-forward give.
    """

    Config = GatedCrossAttentionConfig
    config: GatedCrossAttentionConfig

    def __init__(
        self, config: GatedCrossAttentionConfig, source_dim: int, target_dim: int, projection: nn.Module
    ) -> None:
        super().__init__(config, source_dim, target_dim, projection)
        self.feed_forward_norm = nn.RMSNorm(target_dim)
        self.feed_forward = mlp((target_dim, config.ffn_mult * target_dim, target_dim), "gelu")
        self.attention_gate = self._gate()
        self.feed_forward_gate = self._gate()
        if config.start == "zero_outputs":
            nn.init.zeros_(self.output.weight)
            zero_last(self.feed_forward)

    def _gate(self) -> nn.Parameter | None:
        if self.config.gate == "none":
            return None
        shape = () if self.config.gate == "scalar" else (self.target_dim,)
        return nn.Parameter(torch.full(shape, self.config.first_gate))

    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        """Compute h, (B, T, D)."""
        found_BTD, sees_BT1 = self.attend_to_memory(target, tokens, memory)
        a_BTD = target + _gated(self.attention_gate, found_BTD)
        fed_BTD = self.dropout(self.feed_forward(self.feed_forward_norm(a_BTD)))
        h_BTD = a_BTD + _gated(self.feed_forward_gate, fed_BTD)
        return where_seen(sees_BT1, h_BTD, target)

    def decoding_form(self, blocked: bool) -> LinkForm | None:
        """The link for one token of each row; see `zippkit.model.links.base.HasLinkForm`."""
        if type(self).read is not GatedCrossAttention.read or not can_fold(self):
            return None
        gates = [None if gate is None else gate.tanh() for gate in (self.attention_gate, self.feed_forward_gate)]
        return GatedForm(self, self.feed_forward_norm, self.feed_forward, (gates[0], gates[1]), blocked=blocked)


def _gated(gate: Tensor | None, x_BTD: Tensor) -> Tensor:
    return x_BTD if gate is None else torch.tanh(gate) * x_BTD
