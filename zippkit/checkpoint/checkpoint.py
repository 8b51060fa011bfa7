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
from typing import Any, TypeVar

from zippkit.checkpoint.references import TOWERS, Reference
from zippkit.model.pieces import Held
from zippkit.spec.composition_spec import CompositionSpec

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a checkpoint holds."""

    spec: CompositionSpec
    """With every config written out and no path to weights."""
    tensors: Mapping[str, Held]
    """The model's state, or this rank's pieces of it; once it is read, without the towers that are ``references``."""
    optimizer: Mapping[str, Held] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Plain data of whoever wrote it: step, tokenizer fingerprints, hashes of frozen tensors."""
    references: Mapping[str, Reference] = field(default_factory=dict)
    """By tower, the location and hashes of weights that the checkpoint names and does not hold."""
    sources: Mapping[str, Path] = field(default_factory=dict)
    """Where every tower's weights came from; once it is read, where they are, inside the checkpoint or elsewhere."""


def tower_state(tensors: Mapping[str, T], name: str) -> dict[str, T]:
    """Select one tower's tensors, under its own names."""
    prefix = f"{TOWERS}.{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
