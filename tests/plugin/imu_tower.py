"""A motion tower: causal convolutions over quantised readings of an inertial sensor."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from zippkit import Tower, TowerBatch, TowerConfig


class Imu(Tower):
    """Each layer mixes a token with the ``reach - 1`` tokens before it."""

    class Config(TowerConfig):
        """The spec's ``config:``; the base class brings dim, n_layers, max_len and frame."""

        vocab_size: int = Field(gt=0, description="Quantised readings, begin and end included.")
        reach: int = Field(4, gt=0, description="Tokens that a layer looks at, the own one included.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(nn.Linear(config.reach * config.dim, config.dim) for _ in range(config.n_layers))
        self.out = nn.Linear(config.dim, config.vocab_size)

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Any]:
        return self.embedding(inputs.tokens), (inputs.positions, inputs.position_ids, cache)

    def layer(self, index: int, hidden: Tensor, context: Any) -> Tensor:
        positions, position_ids, cache = context
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        past = hidden
        if cache is not None:
            past = cache[index]
            past[rows, positions] = hidden
        window = []
        for back in range(self.config.reach):
            there = (position_ids >= back)[..., None]  # They count from 0 in each document of a row.
            window.append(past[rows, (positions - back).clamp(min=0)] * there)
        return hidden + torch.relu(self.layers[index](torch.cat(window, dim=-1)))

    def head(self, hidden: Tensor) -> Tensor:
        return self.out(hidden)

    def new_cache(self, batch_size: int, max_len: int) -> list[Tensor]:
        return [self.out.weight.new_zeros(batch_size, max_len, self.config.dim) for _ in self.layers]
