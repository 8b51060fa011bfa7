"""Checkpoints: a folder of safetensors, spec and manifest, complete or not there at all.

::

    spec.yaml                         with every config written out, and no path
    manifest.json                     hashes, and of each tower where it is
    links.safetensors                 links, input projections, and whatever else belongs to no single tower
    adapters.safetensors              if there are any
    towers/NAME/                      towers that were trained, or that have no source of their own
    optimizer.safetensors             while a run is under way

A frozen tower that still equals the weights it came from is not copied: the manifest names their location and hashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from zippkit.checkpoint.references import TOWERS, Reference
from zippkit.spec.composition_spec import CompositionSpec


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a checkpoint holds."""

    spec: CompositionSpec
    """With every config written out and no path to weights."""
    tensors: Mapping[str, Tensor]
    """The model's state; once it is read, without the towers that are ``references``."""
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Plain data of whoever wrote it: step, tokenizer fingerprints, hashes of frozen tensors."""
    references: Mapping[str, Reference] = field(default_factory=dict)
    """By tower, the location and hashes of weights that the checkpoint names and does not hold."""
    sources: Mapping[str, Path] = field(default_factory=dict)
    """Where every tower's weights came from; once it is read, where they are, inside the checkpoint or elsewhere."""


def tower_state(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Select one tower's tensors, under its own names."""
    prefix = f"{TOWERS}.{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
