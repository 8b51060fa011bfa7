"""The recipe that a run keeps: its paths are relative to the run, and known by the hashes of what they lead to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from zippkit.checkpoint.references import known_hash
from zippkit.errors import ZippkitError
from zippkit.model.weights import weight_files
from zippkit.plan.parts import CHECKPOINT_MANIFEST, checkpoint_folder
from zippkit.spec.derived_recipe import dump
from zippkit.spec.recipe import Recipe


def recipe_text(recipe: Recipe, run: Path) -> str:
    """Return the recipe as YAML, its paths relative to the run: equal from any working directory."""
    data = dump(recipe)
    for place, path in _paths(recipe).items():
        _set(data, place, os.path.relpath(path.resolve(), run.resolve()))
    return yaml.safe_dump(data, sort_keys=False)


def input_hashes(recipe: Recipe) -> dict[str, str]:
    """Return the hash of what each path of a recipe leads to, by its key path."""
    return {place: _input_hash(path) for place, path in _paths(recipe).items()}


def was_moved(there: str, here: str, recipe: Recipe, known: Mapping[str, str]) -> bool:
    """Whether two texts of a recipe differ in paths alone, and these lead to what they led to.

    Args:
        there: the text that the run keeps.
        here: the text of ``recipe``.
        recipe: as it is now.
        known: the `input_hashes` that the run keeps.
    """
    try:
        found, data = yaml.safe_load(there), yaml.safe_load(here)
        moved = {place: path for place, path in _paths(recipe).items() if _get(found, place) != _get(data, place)}
        for place in moved:
            _set(found, place, _get(data, place))
    except (yaml.YAMLError, LookupError, TypeError):
        return False
    # As text, because the order of towers and links counts.
    alike = yaml.safe_dump(found, sort_keys=False) == yaml.safe_dump(data, sort_keys=False)
    return alike and all(known.get(place) == _input_hash(path) != "" for place, path in moved.items())


def _paths(recipe: Recipe) -> dict[str, Path]:
    """The paths of a recipe by their places in it, as in ``spec.towers.text.weights``."""
    if isinstance(recipe.data, Path):
        found = {"data": recipe.data}
    else:
        given = {name: isinstance(source, Path) for name, source in recipe.data.items()}
        found = {f"data.{n}" if given[n] else f"data.{n}.path": each.path for n, each in recipe.sources.items()}
    if recipe.start_from is not None:
        found["start_from"] = recipe.start_from
    towers = recipe.spec.towers.items()
    return found | {f"spec.towers.{name}.weights": tower.weights for name, tower in towers if tower.weights is not None}


def _get(data: Any, place: str) -> Any:
    for key in place.split("."):
        data = data[key]
    return data


def _set(data: Any, place: str, value: str) -> None:
    *above, last = place.split(".")
    (_get(data, ".".join(above)) if above else data)[last] = value


def _input_hash(path: Path) -> str:
    """Return the hash of what a path leads to; empty where nothing of the kind is there.

    A dataset or checkpoint is known by its manifest, which holds the hashes of its files; others by their weights.
    """
    try:
        manifest = checkpoint_folder(path) / CHECKPOINT_MANIFEST
        return " ".join(sorted(map(known_hash, [manifest] if manifest.is_file() else weight_files(path))))
    except (ZippkitError, OSError):
        return ""


def first_difference(there: str, here: str) -> str:
    """Return the first line in which two texts differ, as a message tells it."""
    for old, new in zip(there.splitlines(), here.splitlines(), strict=False):
        if old != new:
            return f"{old.strip()!r} there, {new.strip()!r} here"
    return "one is longer than the other"
