"""Number of parameters of a cell's composition, counted without values and once for each spec."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from zippkit.errors import ZippkitError
from zippkit.model.meta_device import meta_model
from zippkit.report.sizes import part_sizes
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.derived_recipe import dump


class Parameters(NamedTuple):
    """Numbers of parameters."""

    total: int
    trained: int
    """Those that are not frozen."""


@dataclass(frozen=True)
class _Key:
    """A spec as a dictionary's key."""

    text: str
    spec: CompositionSpec = field(compare=False)


def parameters(spec: CompositionSpec) -> Parameters | None:
    """A composition's parameters; None where it cannot be built here (a package that it needs is missing)."""
    return _counted(_Key(json.dumps(dump(spec), default=str), spec))


@cache
def _counted(key: _Key) -> Parameters | None:
    try:
        parts = part_sizes(meta_model(key.spec)[0])
    except (ZippkitError, ImportError, OSError):
        return None
    return Parameters(sum(part.parameters for part in parts), sum(part.trained for part in parts))


def shown_number(n: int) -> str:
    """Three digits and a unit, such as ``1.24 M``."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if n >= size:
            return f"{n / size:#.3g}".rstrip(".") + f" {unit}"
    return str(n)
