"""The layers of a resampler: latents attend to a segment's states, as in a perceiver or as in a Q-Former."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zippkit.model.layers import mlp, split_heads
from zippkit.model.links.attending import apply_rotary, masked_attention


@dataclass(frozen=True)
class Seen:
    """Masks of the latents' attention. L counts the latents of all segments of a row."""

    tokens: Tensor
    """(B, L, S) bool: the source's tokens of the latent's own segment."""
    latents: Tensor
    """(B, L, L) bool: the latents of its own segment."""
    positions: Tensor | None
    """(B, S) position ids of the source's keys; None: they have no positions."""


class Attention(nn.Module):
    """Multi-head attention; queries, and keys of latents, have no positions."""

    def __init__(self, dim: int, n_heads: int, theta: float) -> None:
        super().__init__()
        self.n_heads, self.theta = n_heads, theta
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def keys(self, x_BSD: Tensor, positions_BS: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, H, S, K) each."""
        key_BHSK, value_BHSK = (split_heads(each(x_BSD), self.n_heads) for each in (self.key, self.value))
        return (key_BHSK if positions_BS is None else apply_rotary(key_BHSK, positions_BS, self.theta)), value_BHSK

    def forward(self, x_BLD: Tensor, keys: tuple[Tensor, Tensor], mask_BLS: Tensor) -> Tensor:
        """Attend from the latents (B, L, D) to the keys."""
        out: Tensor = self.output(masked_attention(split_heads(self.query(x_BLD), self.n_heads), *keys, mask_BLS))
        return out


class PerceiverLayer(nn.Module):
    """One attention over the segment and its latents together, then a feed-forward (Flamingo, section 3.1.1)."""

    def __init__(self, dim: int, n_heads: int, ffn_mult: int, theta: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim)
        self.attention = Attention(dim, n_heads, theta)
        self.feed_forward_norm = nn.RMSNorm(dim)
        self.feed_forward = mlp((dim, ffn_mult * dim, dim), "gelu")

    def forward(self, x_BLD: Tensor, source_BSD: Tensor, seen: Seen) -> Tensor:
        """Rewrite the latents (B, L, D) by the source's states (B, S, D)."""
        normed_BLD = self.attention_norm(x_BLD)
        pairs = zip(self.attention.keys(source_BSD, seen.positions), self.attention.keys(normed_BLD), strict=True)
        keys, values = (torch.cat(pair, dim=2) for pair in pairs)
        mask = torch.cat([seen.tokens, seen.latents], dim=-1)
        x_BLD = x_BLD + self.attention(normed_BLD, (keys, values), mask)
        out: Tensor = x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))
        return out


class QFormerLayer(nn.Module):
    """Attention among the latents, attention over the segment, then a feed-forward (BLIP-2, section 3.1).

    The original has attention over the source in every second layer, and norms behind each part; here it is in every
    layer, and norms come first, as everywhere else.
    """

    def __init__(self, dim: int, n_heads: int, ffn_mult: int, theta: float) -> None:
        super().__init__()
        self.self_attention_norm = nn.RMSNorm(dim)
        self.self_attention = Attention(dim, n_heads, theta)
        self.cross_attention_norm = nn.RMSNorm(dim)
        self.cross_attention = Attention(dim, n_heads, theta)
        self.feed_forward_norm = nn.RMSNorm(dim)
        self.feed_forward = mlp((dim, ffn_mult * dim, dim), "gelu")

    def forward(self, x_BLD: Tensor, source_BSD: Tensor, seen: Seen) -> Tensor:
        """Rewrite the latents (B, L, D) by the source's states (B, S, D)."""
        normed_BLD = self.self_attention_norm(x_BLD)
        x_BLD = x_BLD + self.self_attention(normed_BLD, self.self_attention.keys(normed_BLD), seen.latents)
        keys = self.cross_attention.keys(source_BSD, seen.positions)
        x_BLD = x_BLD + self.cross_attention(self.cross_attention_norm(x_BLD), keys, seen.tokens)
        out: Tensor = x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))
        return out


LAYERS: dict[str, type[PerceiverLayer] | type[QFormerLayer]] = {"perceiver": PerceiverLayer, "qformer": QFormerLayer}
