"""The tower protocol: one modality's stack of layers, run one layer at a time, with a cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from zippkit.batch import TowerBatch
from zippkit.config import TowerConfig
from zippkit.masks import self_mask
from zippkit.weights import load_into, read_tensors


class Tower(nn.Module, ABC):
    """Base of every tower. Subclass it, name its ``Config``, write `start`, `layer` and `head`."""

    Config: ClassVar[type[TowerConfig]]

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Any]:
        """Embed the new tokens.

        Args:
            inputs: the new tokens, (B, T) each: ``tokens``, ``positions`` and more.
            mask: (B, T, S) bool, True where a token may attend; S counts the cache's slots, of which slot ``i`` holds
                position ``i``, and None stands for plain causal attention over the T tokens themselves.
            cache: what `new_cache` gave, or None; layers write the new tokens' keys and values into it.

        Returns:
            The state at depth 0, (B, T, D), and whatever `layer` needs besides it.
        """

    @abstractmethod
    def layer(self, index: int, hidden: Tensor, context: Any) -> Tensor:
        """Run layer ``index`` (from 0) on (B, T, D) states."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Logits (B, T, V) from the last layer's states, final norm included."""

    def new_cache(self, batch_size: int, max_len: int) -> Any:
        """An empty cache of ``max_len`` slots in each row."""
        raise NotImplementedError(f"{type(self).__name__} cannot generate: it has no cache")

    def load_weights(self, path: Path) -> None:
        """Load pre-trained weights from a safetensors file, or a folder of them, under this tower's own names.

        Raises:
            CheckpointError: cut short, not safetensors, or names and shapes that differ; all of them are told.
        """
        load_into(self, read_tensors(path), str(path))


def tower_logits(tower: Tower, inputs: TowerBatch) -> Tensor:
    """Logits (B, T, V) of a tower by itself, without links or input projection."""
    hidden, context = tower.start(inputs, self_mask(inputs, tower.config.causal))
    for index in range(tower.config.n_layers):
        hidden = tower.layer(index, hidden, context)
    return tower.head(hidden)
