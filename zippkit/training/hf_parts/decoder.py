"""A decoder for any discrete tokens, with the layers and the names of a llama (arXiv 2302.13971)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from zippkit.training.hf_parts.layers import attend, rotary_angles, rotate, split_heads
from zippkit.training.hf_parts.sequence import Memory, Tokens


class DecoderAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.width = settings["n_heads"], settings["n_kv_heads"], settings["head_dim"]
        self.theta = settings["rope_theta"]
        dim = settings["dim"]
        self.q_proj = nn.Linear(dim, self.n_heads * self.width, bias=False)
        self.k_proj = nn.Linear(dim, self.n_kv_heads * self.width, bias=False)
        self.v_proj = nn.Linear(dim, self.n_kv_heads * self.width, bias=False)
        self.o_proj = nn.Linear(self.n_heads * self.width, dim, bias=False)

    def forward(
        self, x_BTD: Tensor, index: int, tokens: Tokens, cache: DynamicCache, others: Sequence[Memory]
    ) -> Tensor:
        """Attend to the tower's tokens so far, and to those of towers that share this layer's attention."""
        angles = rotary_angles(tokens.position_ids, self.width, self.theta)
        queries = rotate(split_heads(self.q_proj(x_BTD), self.n_heads), angles)
        keys = rotate(split_heads(self.k_proj(x_BTD), self.n_kv_heads), angles)
        keys, values = cache.update(keys, split_heads(self.v_proj(x_BTD), self.n_kv_heads), index)
        mask = tokens.mask()
        if others:
            keys = torch.cat([keys, *(other.keys.to(keys) for other in others)], dim=2)
            values = torch.cat([values, *(other.values.to(values) for other in others)], dim=2)
            theirs = [other.real[:, None, None].expand(-1, -1, mask.shape[2], -1) for other in others]
            mask = torch.cat([mask, *theirs], dim=-1)
        out: Tensor = self.o_proj(attend(queries, keys, values, mask))
        return out


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, width, bias=False)
        self.up_proj = nn.Linear(dim, width, bias=False)
        self.down_proj = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        dim, eps = settings["dim"], settings["norm_eps"]
        self.input_layernorm = nn.RMSNorm(dim, eps=eps)
        self.self_attn = DecoderAttention(settings)
        self.post_attention_layernorm = nn.RMSNorm(dim, eps=eps)
        self.mlp = SwiGLU(dim, settings["ffn_dim"])

    def forward(
        self, hidden: Tensor, index: int, tokens: Tokens, cache: DynamicCache, others: Sequence[Memory]
    ) -> Tensor:
        """States (B, T, D) after this layer, which is layer ``index``."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), index, tokens, cache, others)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class Decoder(nn.Module):
    """A causal decoder for any discrete tokens: text, speech units, image levels."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(settings["vocab_size"], settings["dim"])
        self.layers = nn.ModuleList(DecoderLayer(settings) for _ in range(settings["n_layers"]))
        self.norm = nn.RMSNorm(settings["dim"], eps=settings["norm_eps"])
        if not settings["tied"]:
            self.lm_head = nn.Linear(settings["dim"], settings["vocab_size"], bias=False)
        self.tied = settings["tied"]

    def embed(self, tokens: Tokens) -> Tensor:
        """States (B, T, D) at depth 0."""
        out: Tensor = self.embed_tokens(tokens.ids)
        return out

    def placed(self, states: Tensor, tokens: Tokens) -> Tensor:
        """Add positions to states (B, T, D) that come from elsewhere; rotary ones are added by the layers."""
        del tokens
        return states

    def layer(
        self, index: int, hidden: Tensor, tokens: Tokens, cache: DynamicCache, others: Sequence[Memory] = ()
    ) -> Tensor:
        """Run layer ``index`` (from 0) on the new tokens' states (B, T, D)."""
        out: Tensor = self.layers[index](hidden, index, tokens, cache, others)
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        weight = self.embed_tokens.weight if self.tied else self.lm_head.weight
        return F.linear(self.norm(hidden), weight)
