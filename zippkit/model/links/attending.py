"""Cross-attention that links share: keys and values of the source, and the target's attention over them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.model.layers import Dropout, angles_of, attend, rotary_angles, rotate, split_heads
from zippkit.model.links.base import Link, Memory
from zippkit.model.links.configs import AttendingConfig
from zippkit.model.visibility import visibility_of


def apply_rotary(x_BHTK: Tensor, positions_BT: Tensor, theta: float) -> Tensor:
    """Rotate queries or keys by their position ids (rotary embedding, arXiv 2104.09864)."""
    return rotate(x_BHTK, rotary_angles(positions_BT, x_BHTK.shape[-1], theta, x_BHTK.dtype))


def masked_attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_BTS: Tensor) -> Tensor:
    """Attention under a mask, (B, T, H * K); fully masked queries return an arbitrary finite value.

    Such a query attends to every key, so that no kernel meets an empty row; the caller discards its result.
    """
    return attend(q_BHTK, k_BHSK, v_BHSK, mask_BTS | ~mask_BTS.any(dim=-1, keepdim=True))


class Attending(Link):
    """Base of the links in which the target's states attend to the source's."""

    config: AttendingConfig

    def __init__(self, config: AttendingConfig, source_dim: int, target_dim: int, projection: nn.Module) -> None:
        super().__init__(config, source_dim, target_dim, projection)
        self.source_norm = nn.RMSNorm(source_dim) if config.norm_source else nn.Identity()
        self.attention_norm = nn.RMSNorm(target_dim)
        self.query = nn.Linear(target_dim, target_dim, bias=False)
        self.key = nn.Linear(target_dim, target_dim, bias=False)
        self.value = nn.Linear(target_dim, target_dim, bias=False)
        self.output = nn.Linear(target_dim, target_dim, bias=False)
        self.dropout = Dropout(config.dropout)

    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        """Project and norm the source's states, and keep their keys and values: (B, S, H, K) and (B, S, D)."""
        projected_BSD = self.projection(self.source_norm(source))
        key_BHSK = split_heads(self.key(projected_BSD), self.config.n_heads)
        if (at := self._positions(tokens, writes=True)) is not None:
            key_BHSK = self._rotated(key_BHSK, tokens, at, self.config.pace)
        return Memory(tokens.visible, (key_BHSK.transpose(1, 2), self.value(projected_BSD)))

    def ask(self, tokens: TowerBatch, memory: Memory | None) -> None:
        """What is seen, and rotary angles."""
        if memory is not None:
            visibility_of(tokens, memory.order)
        at = self._positions(tokens, writes=memory is None)
        if at is not None:
            config, width = self.config, self.target_dim // self.config.n_heads
            pace = config.pace if memory is None else 1
            angles_of(tokens, at, width, config.rope_theta, self.query.weight.dtype, pace)

    def _positions(self, tokens: TowerBatch, *, writes: bool) -> Tensor | None:
        """(B, T) by which keys (``writes``) or queries are rotated."""
        if self.config.positions == "rotary":
            return tokens.positions
        return tokens.offset if writes and self.config.positions != "none" else None

    def attend_to_memory(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> tuple[Tensor, Tensor]:
        """Attend from each target state to the memory's earlier tokens.

        Returns:
            (B, T, D), and (B, T, 1) bool: the token sees any of them; elsewhere the first is arbitrary.
        """
        visibility = visibility_of(tokens, memory.order)
        key_BSHK, value_BSD = memory.tensors
        query_BHTK = split_heads(self.query(self.attention_norm(target)), self.config.n_heads)
        if (at := self._positions(tokens, writes=False)) is not None:
            query_BHTK = self._rotated(query_BHTK, tokens, at)
        value_BHSK = split_heads(value_BSD, self.config.n_heads)
        out: Tensor = self.dropout(self.output(visibility.attend(query_BHTK, key_BSHK.transpose(1, 2), value_BHSK)))
        return out, visibility.sees

    def _rotated(self, x_BHTK: Tensor, tokens: TowerBatch, positions: Tensor, pace: float = 1) -> Tensor:
        return rotate(
            x_BHTK, angles_of(tokens, positions, x_BHTK.shape[-1], self.config.rope_theta, x_BHTK.dtype, pace)
        )


def where_seen(sees_BT1: Tensor, rewritten_BTD: Tensor, target_BTD: Tensor) -> Tensor:
    """Rewrite the states that see something; blind positions keep the target's own, to the last bit."""
    return torch.where(sees_BT1, rewritten_BTD, target_BTD)
