"""A tower's operations as a composition runs them, and a tower run by itself.

Between the layers states are float32 at least, whatever the tower's own dtype; inside a layer they are of that dtype.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.batch.masks import self_mask
from zippkit.model.layers import at_least_float32
from zippkit.model.tower import Tower


def run_start(tower: Tower, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Any]:
    """`Tower.start`, as a composition runs it: states between a tower's layers, which links read and rewrite, are
    float32 at least, whatever the tower's own dtype."""
    hidden, context = tower.start(inputs, mask, cache)
    return at_least_float32(hidden), context


def run_layer(tower: Tower, index: int, hidden: Tensor, context: Any) -> Tensor:
    """`Tower.layer`, inside the tower's own dtype; states come and go as of `run_start`."""
    return at_least_float32(tower.layer(index, hidden.to(tower.dtype), context))


def run_head(tower: Tower, hidden: Tensor) -> Tensor:
    """`Tower.head`, inside the tower's own dtype; logits are float32 at least."""
    return at_least_float32(tower.head(hidden.to(tower.dtype)))


def tower_states(tower: Tower, inputs: TowerBatch) -> Tensor:
    """States (B, T, D) after every layer of a tower by itself, without links or input projection."""
    hidden, context = run_start(tower, inputs, self_mask(inputs, tower.config.causal))
    for index in range(tower.config.n_layers):
        hidden = run_layer(tower, index, hidden, context)
    return hidden


def tower_logits(tower: Tower, inputs: TowerBatch) -> Tensor:
    """Logits (B, T, V) of a tower by itself, without links or input projection; only for a tower that has a head."""
    return run_head(tower, tower_states(tower, inputs))
