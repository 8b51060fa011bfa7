"""Tokens for links that are run by themselves, and the pieces of the naive loops that they are compared with."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch


def tokens(order: Tensor, **columns: Tensor) -> TowerBatch:
    """(B, T) tokens that are visible from their own order on, in one segment unless told otherwise."""
    made = replace(TowerBatch.alone(order), order=order, visible=order, segment=torch.where(order < 0, -1, 0))
    made = replace(made, **columns)
    return replace(made, n_segments=max(len(set(row) - {-1}) for row in made.segment.tolist()))


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of one vector."""
    return x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt() * weight


def turn(x: Tensor, position: float, theta: float) -> Tensor:
    """Rotate the pair (x[i], x[i + K / 2]) by position * theta^(-2i / K); angles are float64."""
    out, half = x.clone(), len(x) // 2
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        cos, sin = math.cos(angle), math.sin(angle)
        out[i] = x[i] * cos - x[i + half] * sin
        out[i + half] = x[i + half] * cos + x[i] * sin
    return out


def linears(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """An MLP of linear layers with ReLU between them, on one vector."""
    numbers = sorted(
        int(key.split(".")[-2]) for key in weights if key.startswith(f"{name}.") and key.endswith("weight")
    )
    for i in numbers:
        x = weights[f"{name}.{i}.weight"] @ x + weights[f"{name}.{i}.bias"]
        x = torch.relu(x) if i != numbers[-1] else x
    return x


def feed_forward(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Linear, GELU, linear, on one vector."""
    inner = torch.nn.functional.gelu(weights[f"{name}.0.weight"] @ x + weights[f"{name}.0.bias"])
    return weights[f"{name}.2.weight"] @ inner + weights[f"{name}.2.bias"]
