"""Towers of one set of weights: what they have in common is written once, where the weights are."""

from __future__ import annotations

from typing import Any

from zippkit.spec.tower_spec import TowerSpec

SHARED_KEYS = ("kind", "config", "weights", "dtype", "frame", "freeze", "lora")
"""Keys that towers of one set of weights have in common."""


def with_shared(data: Any) -> Any:
    """A spec's data in which a tower that shares another's weights has taken over what it does not say itself."""
    towers = data.get("towers") if isinstance(data, dict) else None
    if not isinstance(towers, dict):
        return data
    return {**data, "towers": {name: _with_shared(tower, towers) for name, tower in towers.items()}}


def _with_shared(tower: Any, towers: dict[Any, Any]) -> Any:
    """A tower's section with what `share_with` gives it."""
    if isinstance(tower, TowerSpec) or not isinstance(tower, dict):
        return tower
    other = towers.get(tower.get("share_with")) if isinstance(tower.get("share_with"), str) else None
    if isinstance(other, TowerSpec):
        other = other.model_dump(by_alias=True, exclude_unset=True)
    return {key: other[key] for key in SHARED_KEYS if key in other} | tower if isinstance(other, dict) else tower
