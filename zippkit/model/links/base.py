"""The link protocol: a source writes a memory, a target reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.spec.kinds import LinkConfig


@dataclass(frozen=True)
class Memory:
    """A link's keys and values of its source, or whatever else it keeps; it is also the link's cache.

    Every tensor has the batch first and what is seen second (the source's tokens, or what the link makes of a segment
    of them), so that memories of one row's segments join.
    """

    order: Tensor
    """(B, S) order from which each entry is visible; -1 marks padding."""
    tensors: tuple[Tensor, ...]
    """(B, S, ...) such as keys and values."""

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The memory of several runs of source tokens, one after the other."""
        if len(parts) == 1:
            return parts[0]
        tensors = zip(*(part.tensors for part in parts), strict=True)
        return cls(torch.cat([part.order for part in parts], dim=1), tuple(torch.cat(each, dim=1) for each in tensors))


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
    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        """Turn source states into a memory, once for each source token.

        Segments come whole (unless the two towers advance together), one or several at a time.

        Args:
            source: (B, S, source_dim) states; keys and values (B, S, 2, H, K) for a link inside attention.
            tokens: the source's tokens, (B, S) each: ``visible`` is the order from which each may be seen, -1 at
                padding; ``positions`` its index among the source's own; ``segment`` and ``offset`` which segment it
                belongs to, and its index therein; ``inserted`` marks slots that stand for segments of a third tower.
        """

    @abstractmethod
    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        """Rewrite target states; the identity at initialisation and on blind positions.

        At the embedding (`LinkConfig.acts`), it fills the slots that the link has inserted, each from the segment that
        ``segment`` names, and leaves every other token as it is. Inside attention it is not called: the target's layer
        attends over keys and values (B, S, H, K), which the memory's tensors are.

        Args:
            target: (B, T, target_dim) states.
            tokens: the target's tokens, (B, T) each: ``order`` is the rank of each in the whole sequence, -1 at
                padding; ``positions`` its index among the target's own.
            memory: what `write` gave, for every source token so far; only earlier ones may be read
                (`zippkit.batch.masks.cross_mask`), and of a packed row only those of the token's own document.
        """

    def ask(self, tokens: TowerBatch, memory: Memory | None) -> None:
        """Ask for what `read` (or, without a memory, `write`) shares with other sites (`TowerBatch.once`).

        It is called before a compiled `read` or `write`, which then finds it; what is not asked for here is made
        inside, once for each site.

        Args:
            tokens: as given to `read` or `write`.
            memory: as given to `read`.
        """


class LinkForm(Protocol):
    """A link's reading for one token of each row, behind everything that its memory holds."""

    def prepare(self, memory: Memory, n_slots: int | None) -> Any:
        """Lay a memory out, once for all steps that read it.

        Args:
            memory: what `Link.write` gave.
            n_slots: fill it up to so many entries, and decide nothing by what it holds: for a compiled step.
        """

    def read(self, target: Tensor, tokens: TowerBatch, prepared: Any) -> Tensor:
        """Rewrite target states (B, D)."""


@runtime_checkable
class HasLinkForm(Protocol):
    """A link that has a twin."""

    def decoding_form(self, blocked: bool) -> LinkForm | None:
        """The twin, of the weights as they are now; None where it would compute something else.

        Args:
            blocked: whether weights may be laid out as oneDNN has them; False where the twin is to be compiled.
        """
