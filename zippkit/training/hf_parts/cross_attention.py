"""Plain cross-attention, added to the target's state (CALM, arXiv 2401.02412)."""

from __future__ import annotations

from torch import Tensor

from zippkit.training.hf_parts.attending import Attending
from zippkit.training.hf_parts.sequence import Memory, Tokens


class CrossAttention(Attending):
    """``h = u + W_O Attn(norm(u), F(norm(s)))`` for a target state u and a source state s; F is the projection."""

    def read(self, target: Tensor, tokens: Tokens, memory: Memory) -> Tensor:
        """Compute h, (B, T, D)."""
        return target + self.found(target, tokens, memory)
