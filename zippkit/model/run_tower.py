"""A tower's operations as a composition runs them, and a tower run by itself.

Between the layers states are float32 at least, whatever the tower's own dtype; inside a layer they are of that dtype.
"""

from __future__ import annotations

from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.batch.masks import self_mask
from zippkit.model.layers import at_least_float32
from zippkit.model.tower import Cache, Context, Tower


def own_mask(tower: Tower[Cache, Context], inputs: TowerBatch) -> Tensor | None:
    """The mask that `Tower.start` is given for a whole sequence; None for a tower that takes the description."""
    return None if tower.takes_description else self_mask(inputs, tower.config.causal)


def run_start(
    tower: Tower[Cache, Context], inputs: TowerBatch, mask: Tensor | None, cache: Cache | None = None
) -> tuple[Tensor, Context]:
    """Run `Tower.start`; states are float32 at least.

    They stay so between a tower's layers, where links read and rewrite them, whatever the tower's own dtype.
    """
    hidden, context = tower.start(inputs, mask, cache)
    return at_least_float32(hidden), context


def run_layer(tower: Tower[Cache, Context], index: int, hidden: Tensor, context: Context) -> Tensor:
    """Run `Tower.layer` in the tower's own dtype; states come and go as of `run_start`."""
    return at_least_float32(tower.layer(index, hidden.to(tower.dtype), context))


def run_head(tower: Tower, hidden: Tensor) -> Tensor:
    """Run `Tower.head` in the tower's own dtype; logits are float32 at least."""
    return at_least_float32(tower.head(hidden.to(tower.dtype)))


def tower_states(tower: Tower, inputs: TowerBatch) -> Tensor:
    """Run every layer of a tower by itself, without links or input projection: states (B, T, D)."""
    hidden, context = run_start(tower, inputs, own_mask(tower, inputs))
    for index in range(tower.config.n_layers):
        hidden = run_layer(tower, index, hidden, context)
    return hidden


def tower_logits(tower: Tower, inputs: TowerBatch) -> Tensor:
    """Run a tower by itself, without links or input projection: logits (B, T, V). It must have a head."""
    return run_head(tower, tower_states(tower, inputs))
