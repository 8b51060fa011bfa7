"""What a tower is given, and what is kept of it: one segment of one modality at a time.

A segment stands behind everything that came before it, so it sees all of that and nothing else: no mask is needed
between towers, but for padding.

Shapes: B rows, T new tokens, S tokens that are kept, D width, H heads, K width of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache


class Tokens(NamedTuple):
    """New tokens of one tower, padded at the end of each row."""

    ids: Tensor
    """(B, T) token ids."""
    real: Tensor
    """(B, T) bool: no padding."""
    positions: Tensor
    """(B, T) index among the tower's own tokens."""
    position_ids: Tensor
    """(B, T) what position embeddings are made of: ``positions``, or the place in the whole sequence."""
    offset: Tensor
    """(B, T) index within the segment."""
    kept: Tensor
    """(B, S) ``positions`` of all tokens of the tower so far, these included; -1 at padding."""

    def mask(self, window: int | None = None) -> Tensor:
        """(B, 1, T, S) bool: a token sees those of its tower up to itself, within a window if there is one."""
        at, kept = self.positions[:, :, None], self.kept[:, None, :]
        seen = (kept >= 0) & (kept <= at)
        return (seen if window is None else seen & (at - kept < window))[:, None]


class Memory(NamedTuple):
    """What a link keeps of its source."""

    keys: Tensor
    """(B, H, S, K)"""
    values: Tensor
    """(B, H, S, K)"""
    real: Tensor
    """(B, S) bool: no padding."""

    def extended(self, new: Memory) -> Memory:
        """This memory with new entries behind it."""
        keys, values = torch.cat([self.keys, new.keys], dim=2), torch.cat([self.values, new.values], dim=2)
        return Memory(keys, values, torch.cat([self.real, new.real], dim=1))


class Slots(NamedTuple):
    """States that a link puts into the target's own sequence, before the target's next segment."""

    states: Tensor
    """(B, N, D)"""
    real: Tensor
    """(B, N) bool: no padding."""


class Past:
    """Everything that is kept of the segments so far, from which the next one goes on."""

    def __init__(self, n_rows: int, device: torch.device, multimodal: bool) -> None:
        self.n_rows, self.device, self.multimodal = n_rows, device, multimodal
        self.order = torch.zeros(n_rows, dtype=torch.long, device=device)
        """(B,) tokens of all segments so far."""
        self.caches: dict[str, DynamicCache] = {}
        """Each tower's keys and values."""
        self.kept: dict[str, Tensor] = {}
        """By tower, (B, S) positions of the tokens in its cache; -1 at padding."""
        self.memories: dict[str, Memory] = {}
        """By site of a link."""
        self.slots: dict[str, list[Slots]] = {}
        """By tower, what is to be put before its next segment."""
        self.unfinished: dict[str, list[tuple[Tensor, Tokens]]] = {}
        """By site, the source's states of a segment that has not ended: nobody reads it yet."""

    def counts(self, tower: str) -> Tensor:
        """(B,) how many tokens a tower was given so far."""
        kept = self.kept.get(tower)
        return torch.zeros_like(self.order) if kept is None else (kept >= 0).sum(dim=1)

    def add(self, tower: str, ids: Tensor, real: Tensor, offset: int, in_whole: bool, inserted: bool = False) -> Tokens:
        """Give new tokens their places.

        Args:
            tower: whose tokens they are.
            ids: (B, T) token ids.
            real: (B, T) bool: no padding.
            offset: index within the segment of the first of them.
            in_whole: whether positions count through the whole sequence.
            inserted: whether they are slots of a link, which take no place in the whole sequence.
        """
        counted = real.long().cumsum(dim=1) - 1
        positions = (self.counts(tower)[:, None] + counted).clamp(min=0)
        steps = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        in_order = self.order[:, None] + (torch.zeros_like(steps) if inserted else counted.clamp(min=0))
        new = torch.where(real, positions, -1)
        self.kept[tower] = torch.cat([self.kept[tower], new], dim=1) if tower in self.kept else new
        self.caches.setdefault(tower, DynamicCache())
        if not inserted:
            self.order = self.order + real.sum(dim=1)
        chosen = in_order if in_whole else positions
        return Tokens(ids, real, positions, chosen, offset + steps, self.kept[tower])
