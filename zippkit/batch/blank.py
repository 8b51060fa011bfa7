"""Padding in the place of a tower's tokens: for batches that lack a tower whose operations they are to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from zippkit.batch.batch import IGNORE, UNDESCRIBED, Batch, Segment, TowerBatch
from zippkit.batch.collate import collate
from zippkit.plan.sequence_layout import SequenceLayout
from zippkit.spec.kinds import TowerConfig

PADDING = {"order": -1, "visible": -1, "segment": -1, "start": 0, "targets": IGNORE}


def blank(name: str, towers: Mapping[str, TowerConfig], layout: SequenceLayout, n_rows: int = 1) -> TowerBatch:
    """Rows of a tower that hold nothing but padding, of the shortest segment's length.

    Whatever such rows pass through gets a gradient of zero, and nobody sees them.

    Args:
        name: of the tower.
        towers: configs by name, in spec order.
        layout: what the composition's links ask of a sequence.
        n_rows: number of rows.
    """
    config = towers[name]
    inputs = config.example_inputs(1, seed=0) if config.continuous else [0]
    found = collate([[Segment(name, inputs, loss=False)]], towers, layout=layout).towers[name]
    rows = found.mapped(lambda column: column.expand(n_rows, -1))
    padding: dict[str, Any] = {
        column: torch.full_like(getattr(rows, column), value) for column, value in PADDING.items()
    }
    features = rows.features and replace(rows.features, entry=rows.features.entry.expand(n_rows, -1))
    following = None if rows.following is None else torch.full_like(rows.order, IGNORE)
    inserted = torch.zeros_like(rows.inserted)
    changed: dict[str, Any] = {**padding, "features": features, "following": following, "inserted": inserted}
    return replace(rows, **changed, **UNDESCRIBED)


def nothing() -> Batch:
    """A batch of no tower at all."""
    return Batch({}, (), False, frozenset())
