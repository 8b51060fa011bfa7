"""The layers of a resampler: latents attend to a segment's states, as in a perceiver or as in a Q-Former."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zippkit.model.layers import Dropout, mlp, rotate, split_heads
from zippkit.model.visibility import Visibility

Angles = tuple[Tensor, Tensor]
"""Of rotary positions, as `zippkit.model.layers.rotary_angles` makes them."""


@dataclass(frozen=True)
class Seen:
    """What the latents attend to. L counts the latents of all segments of a row."""

    tokens: Visibility
    """The source's tokens of the latent's own segment."""
    latents: Visibility
    """The latents of its own segment."""
    both: Visibility
    """The tokens, and the latents behind them."""


class Attention(nn.Module):
    """Multi-head attention; queries, and keys of latents, have no positions."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def keys(self, x_BSD: Tensor, angles: Angles | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, H, S, K) each."""
        key_BHSK, value_BHSK = (split_heads(each(x_BSD), self.n_heads) for each in (self.key, self.value))
        return (key_BHSK if angles is None else rotate(key_BHSK, angles)), value_BHSK

    def forward(self, x_BLD: Tensor, keys: tuple[Tensor, Tensor], seen: Visibility) -> Tensor:
        """Attend from the latents (B, L, D) to the keys."""
        out: Tensor = self.output(seen.attend(split_heads(self.query(x_BLD), self.n_heads), *keys))
        return out


class PerceiverLayer(nn.Module):
    """One attention over the segment and its latents together, then a feed-forward (Flamingo, section 3.1.1)."""

    def __init__(self, dim: int, n_heads: int, ffn_mult: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim)
        self.attention = Attention(dim, n_heads)
        self.feed_forward_norm = nn.RMSNorm(dim)
        self.feed_forward = mlp((dim, ffn_mult * dim, dim), "gelu")
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, source_BSD: Tensor, seen: Seen, angles: Angles | None) -> Tensor:
        """Rewrite the latents (B, L, D) by the source's states (B, S, D), whose keys may have positions."""
        normed_BLD = self.attention_norm(x_BLD)
        pairs = zip(self.attention.keys(source_BSD, angles), self.attention.keys(normed_BLD), strict=True)
        keys, values = (torch.cat(pair, dim=2) for pair in pairs)
        x_BLD = x_BLD + self.dropout(self.attention(normed_BLD, (keys, values), seen.both))
        out: Tensor = x_BLD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BLD)))
        return out


class QFormerLayer(nn.Module):
    """Attention among the latents, attention over the segment, then a feed-forward (BLIP-2, section 3.1).

    The original has attention over the source in every second layer, and norms behind each part; here it is in every
    layer, and norms come first, as everywhere else.
    """

    def __init__(self, dim: int, n_heads: int, ffn_mult: int, dropout: float) -> None:
        super().__init__()
        self.self_attention_norm = nn.RMSNorm(dim)
        self.self_attention = Attention(dim, n_heads)
        self.cross_attention_norm = nn.RMSNorm(dim)
        self.cross_attention = Attention(dim, n_heads)
        self.feed_forward_norm = nn.RMSNorm(dim)
        self.feed_forward = mlp((dim, ffn_mult * dim, dim), "gelu")
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, source_BSD: Tensor, seen: Seen, angles: Angles | None) -> Tensor:
        """Rewrite the latents (B, L, D) by the source's states (B, S, D), whose keys may have positions."""
        normed_BLD = self.self_attention_norm(x_BLD)
        own_BLD = self.self_attention(normed_BLD, self.self_attention.keys(normed_BLD), seen.latents)
        x_BLD = x_BLD + self.dropout(own_BLD)
        keys = self.cross_attention.keys(source_BSD, angles)
        x_BLD = x_BLD + self.dropout(self.cross_attention(self.cross_attention_norm(x_BLD), keys, seen.tokens))
        out: Tensor = x_BLD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BLD)))
        return out


LAYERS: dict[str, type[PerceiverLayer] | type[QFormerLayer]] = {"perceiver": PerceiverLayer, "qformer": QFormerLayer}
