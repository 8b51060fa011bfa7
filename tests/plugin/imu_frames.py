"""A motion tower that is fed the readings themselves: frames of floats, not ids."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from zippkit import Tower, TowerBatch, TowerConfig
from zippkit.spec.kinds import Frames


class ImuFrames(Tower):
    """Each reading becomes a state by itself; an encoder, which links read and nothing predicts."""

    class Config(TowerConfig):
        """The spec's ``config:``; the base class brings dim and n_layers."""

        causal: ClassVar[bool] = False
        continuous: ClassVar[bool] = True  # type: ignore[assignment]

        channels: int = Field(gt=0, description="Values of a reading.")

        @property
        def feed(self) -> Frames:
            return Frames((self.channels,))

        def n_states(self, values: Any) -> int:
            if values.ndim != 2 or values.shape[1] != self.channels or not len(values):
                raise ValueError(f"got readings of shape {values.shape}; expected (N, {self.channels}), N at least 1")
            return len(values)

        def example_inputs(self, size: int, seed: int) -> Any:
            return np.random.default_rng(seed).normal(size=(size, self.channels)).astype(np.float32)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embedding = nn.Linear(config.channels, config.dim)
        self.layers = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(config.n_layers))

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Any]:
        assert inputs.features is not None
        readings = inputs.features.values[inputs.features.entry, inputs.offset]
        # Padding belongs to no segment.
        return self.embedding(readings.to(self.embedding.weight.dtype)) * (inputs.order >= 0)[..., None], None

    def layer(self, index: int, hidden: Tensor, context: Any) -> Tensor:
        return hidden + torch.relu(self.layers[index](hidden))

    def head(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError("an encoder predicts nothing")
