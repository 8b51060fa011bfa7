"""In which dtype a tower's weights are held: what ``dtype: auto`` is, once the file is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from zippkit.errors import CheckpointError
from zippkit.model.weights import float_dtypes
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.tower_spec import TowerSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_of(spec: TowerSpec, source: Path | None) -> Literal["fp32", "bf16"]:
    """The dtype of a tower whose weights are those of ``source``.

    ``auto`` never rounds and never narrows a range: bf16 where all of the file is, else fp32, which holds every value
    of an fp16 file too (fp16 itself overflows at 65,504, which states of many models pass).
    """
    if spec.dtype != "auto":
        return spec.dtype
    folder = source or _there(spec)
    try:
        found = float_dtypes(folder) if folder is not None else set()
    except (CheckpointError, OSError):
        # Whoever reads the weights says what is wrong with them.
        found = set()
    return "bf16" if found == {torch.bfloat16} else "fp32"


def _there(spec: TowerSpec) -> Path | None:
    """Where the weights are, if they are on this machine: nothing is fetched to count them."""
    path = spec.weights or getattr(spec.settings, "path", None)
    return Path(path) if path is not None and Path(path).exists() else None


def concrete(spec: CompositionSpec, sources: Mapping[str, Path] | None = None) -> CompositionSpec:
    """The spec with the dtype that each ``auto`` means, so that it means the same without the file.

    Args:
        spec: the composition.
        sources: where towers' weights are, if not where the spec says.
    """
    if all(tower.dtype != "auto" for tower in spec.towers.values()):
        return spec
    towers = {
        name: tower.model_copy(update={"dtype": dtype_of(tower, (sources or {}).get(name))})
        for name, tower in spec.towers.items()
    }
    return spec.model_copy(update={"towers": towers})
