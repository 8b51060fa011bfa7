"""The link protocol: a source writes a memory, a target reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from zippkit.config import LinkConfig


@dataclass(frozen=True)
class Memory:
    """What a link keeps of its source; it is also the link's cache.

    Every tensor has the batch first and the source's tokens second, so that memories of one row's segments join.
    """

    order: Tensor
    """(B, S) order from which each source token is visible; -1 marks padding."""
    tensors: tuple[Tensor, ...]
    """(B, S, ...) such as keys and values."""

    def join(self, later: Self) -> Self:
        """This memory followed by that of later source tokens."""
        pairs = zip(self.tensors, later.tensors, strict=True)
        order = torch.cat((self.order, later.order), dim=1)
        return type(self)(order, tuple(torch.cat(pair, dim=1) for pair in pairs))


class Link(nn.Module, ABC):
    """Base of every link; one instance for each site."""

    Config: ClassVar[type[LinkConfig]]

    def __init__(self, config: LinkConfig, source_dim: int, target_dim: int, projection: nn.Module) -> None:
        """Keep the config and the projection.

        Args:
            config: this link's own Config.
            source_dim: width of the source's states.
            target_dim: width of the target's states.
            projection: maps (B, S, source_dim) to (B, S, target_dim), as the spec's ``projection`` says.
        """
        super().__init__()
        self.config = config
        self.source_dim = source_dim
        self.target_dim = target_dim
        self.projection = projection

    @abstractmethod
    def write(self, source: Tensor, order: Tensor) -> Memory:
        """Turn source states (B, S, Ds), visible from ``order`` (B, S), into a memory; once per source token."""

    @abstractmethod
    def read(self, target: Tensor, order: Tensor, memory: Memory) -> Tensor:
        """Rewrite target states (B, T, Dt) at ``order`` (B, T); the identity at initialisation and on blind positions."""
