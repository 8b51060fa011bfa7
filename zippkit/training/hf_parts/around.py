"""What stands around a tower: an MLP behind its embedding, and ids that were added to its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.training.hf_parts.layers import mlp


class InputProjection(nn.Module):
    """The MLP right after a tower's embedding, in rows of several modalities."""

    def __init__(self, settings: dict[str, Any], dim: int) -> None:
        super().__init__()
        widths = (dim, *[settings["width"] or dim] * (settings["depth"] - 1), dim)
        self.residual = settings["residual"]
        self.mlp = mlp(widths, settings["activation"], activate_last=not self.residual)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) states to (B, T, D)."""
        projected: Tensor = self.mlp(x_BTD)
        return x_BTD + projected if self.residual else projected


class AddedVocabulary(nn.Module):
    """Token ids ``first`` and up, in rows of their own; embedding and head share them."""

    def __init__(self, first: int, size: int, dim: int) -> None:
        super().__init__()
        self.first = first
        self.embedding = nn.Embedding(size, dim)
        self.norm = nn.RMSNorm(dim)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows (B, T, D) of the added ids; any row for the others."""
        out: Tensor = self.embedding((ids - self.first).clamp(min=0))
        return out

    def head(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """Append the logits of the added ids to the tower's own: (B, T, V + added)."""
        return torch.cat([logits, F.linear(self.norm(hidden), self.embedding.weight)], dim=-1)
