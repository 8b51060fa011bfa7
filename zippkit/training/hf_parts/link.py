"""What every link has: what it makes of its source's segments, and how a target reads it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zippkit.training.hf_parts.layers import mlp
from zippkit.training.hf_parts.sequence import Memory, Slots, Tokens


class Link(nn.Module):
    """Base of the links; one module for each site."""

    def __init__(self, settings: dict[str, Any], source_dim: int, target_dim: int) -> None:
        super().__init__()
        self.settings, self.source_dim, self.target_dim = settings, source_dim, target_dim
        self.projection: nn.Module = nn.Identity()
        if settings["projection"] is not None:
            shape = settings["projection"]
            inner = [shape["width"] or target_dim] * (shape["depth"] - 1)
            self.projection = mlp((shape["n_in"], *inner, target_dim), shape["activation"])
        self.source_norm = nn.RMSNorm(source_dim) if settings["norm_source"] else nn.Identity()

    def write(self, source: Tensor, tokens: Tokens) -> Memory | Slots:
        """Turn the states (B, S, D) of a whole segment of the source into what the target reads."""
        raise NotImplementedError

    def read(self, target: Tensor, tokens: Tokens, memory: Memory) -> Tensor:
        """Rewrite the target's states (B, T, D) by all finished segments of the source."""
        raise NotImplementedError
