"""A resampler: learned queries read a segment, and the target reads the latents that they become.

BLIP-2 (arXiv 2301.12597); Flamingo (arXiv 2204.14198).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zippkit.training.hf_parts.gated_cross_attention import GatedCrossAttention
from zippkit.training.hf_parts.layers import Angles, attend, mlp, rotary_angles, rotate, split_heads
from zippkit.training.hf_parts.link import Link
from zippkit.training.hf_parts.sequence import Memory, Slots, Tokens


class LatentAttention(nn.Module):
    """Multi-head attention of latents; queries, and keys of latents, have no positions."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def keys(self, x_BSD: Tensor, angles: Angles | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, H, S, K) each."""
        keys, values = (split_heads(each(x_BSD), self.n_heads) for each in (self.key, self.value))
        return (keys if angles is None else rotate(keys, angles)), values

    def forward(self, x_BLD: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attend from the latents (B, L, D)."""
        out: Tensor = self.output(attend(split_heads(self.query(x_BLD), self.n_heads), keys, values, mask))
        return out


class PerceiverLayer(nn.Module):
    """One attention over the segment and its latents together, then a feed-forward (Flamingo)."""

    def __init__(self, dim: int, n_heads: int, ffn_mult: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim)
        self.attention = LatentAttention(dim, n_heads)
        self.feed_forward_norm = nn.RMSNorm(dim)
        self.feed_forward = mlp((dim, ffn_mult * dim, dim), "gelu")

    def forward(self, x_BLD: Tensor, source: Tensor, real: Tensor, angles: Angles | None) -> Tensor:
        """Rewrite the latents (B, L, D) by the source's states (B, S, D), of which (B, S) are no padding."""
        normed = self.attention_norm(x_BLD)
        pairs = zip(self.attention.keys(source, angles), self.attention.keys(normed), strict=True)
        keys, values = (torch.cat(pair, dim=2) for pair in pairs)
        mask = torch.cat([real, real.new_ones(normed.shape[:2])], dim=1)[:, None, None]
        x_BLD = x_BLD + self.attention(normed, keys, values, mask)
        out: Tensor = x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))
        return out


class QFormerLayer(nn.Module):
    """Attention among the latents, attention over the segment, then a feed-forward (BLIP-2)."""

    def __init__(self, dim: int, n_heads: int, ffn_mult: int) -> None:
        super().__init__()
        self.self_attention_norm = nn.RMSNorm(dim)
        self.self_attention = LatentAttention(dim, n_heads)
        self.cross_attention_norm = nn.RMSNorm(dim)
        self.cross_attention = LatentAttention(dim, n_heads)
        self.feed_forward_norm = nn.RMSNorm(dim)
        self.feed_forward = mlp((dim, ffn_mult * dim, dim), "gelu")

    def forward(self, x_BLD: Tensor, source: Tensor, real: Tensor, angles: Angles | None) -> Tensor:
        """Rewrite the latents (B, L, D) by the source's states (B, S, D), of which (B, S) are no padding."""
        normed = self.self_attention_norm(x_BLD)
        among = real.new_ones(normed.shape[:2])[:, None, None]
        x_BLD = x_BLD + self.self_attention(normed, *self.self_attention.keys(normed), among)
        keys, values = self.cross_attention.keys(source, angles)
        x_BLD = x_BLD + self.cross_attention(self.cross_attention_norm(x_BLD), keys, values, real[:, None, None])
        out: Tensor = x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))
        return out


class Resampler(Link):
    """Each segment becomes ``queries`` latents: slots in the target's sequence, or what its layers attend to."""

    def __init__(self, settings: dict[str, Any], source_dim: int, target_dim: int) -> None:
        super().__init__(settings, source_dim, target_dim)
        self.queries = nn.Parameter(torch.zeros(settings["queries"], target_dim))
        layer = PerceiverLayer if settings["design"] == "perceiver" else QFormerLayer
        sizes = (target_dim, settings["n_heads"], settings["ffn_mult"])
        self.layers = nn.ModuleList(layer(*sizes) for _ in range(settings["depth"]))
        self.norm = nn.RMSNorm(target_dim)
        if settings["reader"] is not None:
            self.reader = GatedCrossAttention(settings["reader"], target_dim, target_dim)

    def write(self, source: Tensor, tokens: Tokens) -> Memory | Slots:
        """The latents of a segment of states (B, S, D)."""
        angles = None
        if self.settings["positions"] == "keys":
            width = self.target_dim // self.settings["n_heads"]
            angles = rotary_angles(tokens.offset, width, self.settings["rope_theta"])
        projected = self.projection(self.source_norm(source))
        latents = self.queries.expand(len(source), -1, -1)
        for layer in self.layers:
            latents = layer(latents, projected, tokens.real, angles)
        latents, real = self.norm(latents), tokens.real.new_ones(latents.shape[:2])
        if self.settings["reader"] is None:
            return Slots(latents, real)
        return self.reader.write(latents, tokens._replace(real=real))

    def read(self, target: Tensor, tokens: Tokens, memory: Memory) -> Tensor:
        """Attend to the latents of all finished segments."""
        return self.reader.read(target, tokens, memory)
