"""Small layers that towers and links share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
Angles = tuple[Tensor, Tensor]
"""Cosines and sines (B, 1, T, K) of rotary positions."""


def widened(x: Tensor) -> Tensor:
    """States between layers and links are float32 at least, whatever a tower's own dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mlp(widths: Sequence[int], activation: str, activate_last: bool = False) -> nn.Sequential:
    """Linear layers through ``widths`` with an activation between them, and after the last one if asked."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*(layers if activate_last else layers[:-1]))


def rotary_angles(positions: Tensor, width: int, theta: float, pace: float = 1) -> Angles:
    """Angles of the rotary embedding (arXiv 2104.09864) of (B, T) positions times ``pace``."""
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = (positions[:, None, :, None].float() * pace) * theta**-exponents
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_BHTK: Tensor, angles: Angles) -> Tensor:
    """Rotate queries or keys by their positions' angles."""
    cos, sin = angles
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.addcmul(x_BHTK * cos, torch.cat((second, first), dim=-1), sin).to(x_BHTK.dtype)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, H * K) to (B, H, T, K)."""
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2)


def attend(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Tensor) -> Tensor:
    """Attention under a mask (B, 1, T or 1, S), heads joined again: (B, T, H * K); keys may have fewer heads."""
    grouped = q_BHTK.shape[1] != k_BHSK.shape[1]
    heads = F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, enable_gqa=grouped)
    return heads.transpose(1, 2).flatten(2)
