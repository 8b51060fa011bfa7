"""Checks the path in a spec's `weights`; nothing is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from zippkit.spec.kinds import TowerConfig
from zippkit.spec.validation import Complaint

PICKLES = frozenset((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"))


def weights_complaints(weights: Path | None, cls: type[TowerConfig]) -> Iterator[Complaint]:
    """Yield why a tower of a kind cannot read a spec's `weights`, if it cannot."""
    # Path.exists raises on a name that is too long for the file system.
    if weights is not None and not os.path.exists(weights):  # noqa: PTH110
        yield ("weights",), f"{str(weights)!r} does not exist; expected a safetensors file or a folder"
    elif weights is not None and not weights.is_dir() and weights.suffix not in cls.weights_suffixes:
        expected = " or ".join((*cls.weights_suffixes, "a folder"))
        why = "; pickled checkpoints can run code and are never opened" if weights.suffix in PICKLES else ""
        yield ("weights",), f"{str(weights)!r} is no file of weights; expected {expected}{why}"
