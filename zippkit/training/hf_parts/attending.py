"""Cross-attention: the target's states attend to the source's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zippkit.training.hf_parts.layers import attend, rotary_angles, rotate, split_heads
from zippkit.training.hf_parts.link import Link
from zippkit.training.hf_parts.sequence import Memory, Tokens


class Attending(Link):
    """Keys and values of the source, and the target's attention over them."""

    def __init__(self, settings: dict[str, Any], source_dim: int, target_dim: int) -> None:
        super().__init__(settings, source_dim, target_dim)
        self.attention_norm = nn.RMSNorm(target_dim)
        self.query = nn.Linear(target_dim, target_dim, bias=False)
        self.key = nn.Linear(target_dim, target_dim, bias=False)
        self.value = nn.Linear(target_dim, target_dim, bias=False)
        self.output = nn.Linear(target_dim, target_dim, bias=False)

    def write(self, source: Tensor, tokens: Tokens) -> Memory:
        """Keys and values of a segment; keys are turned by their positions times the link's pace."""
        projected = self.projection(self.source_norm(source))
        keys, values = (split_heads(each(projected), self.settings["n_heads"]) for each in (self.key, self.value))
        if self.settings["positions"] != "none":
            at = tokens.positions if self.settings["positions"] == "rotary" else tokens.offset
            keys = rotate(keys, self._angles(keys, at, self.settings["pace"]))
        return Memory(keys, values, tokens.real)

    def found(self, target: Tensor, tokens: Tokens, memory: Memory) -> Tensor:
        """What the target's states (B, T, D) find in the memory."""
        queries = split_heads(self.query(self.attention_norm(target)), self.settings["n_heads"])
        if self.settings["positions"] == "rotary":
            queries = rotate(queries, self._angles(queries, tokens.positions))
        out: Tensor = self.output(attend(queries, memory.keys, memory.values, memory.real[:, None, None]))
        return out

    def _angles(self, x_BHTK: Tensor, positions: Tensor, pace: float = 1) -> tuple[Tensor, Tensor]:
        return rotary_angles(positions, x_BHTK.shape[-1], self.settings["rope_theta"], pace)
