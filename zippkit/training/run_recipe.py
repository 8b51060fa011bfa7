"""The recipe that a run keeps: its paths are relative to the run, and known by the hashes of what they lead to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from zippkit.checkpoint.references import known_hash
from zippkit.errors import ZippkitError
from zippkit.model.weights import weight_files
from zippkit.plan.parts import CHECKPOINT_MANIFEST, checkpoint_folder
from zippkit.spec.derived_recipe import dump
from zippkit.spec.recipe import Recipe
from zippkit.spec.validation import value_at
from zippkit.training.going_on import Change, differences


def recipe_text(recipe: Recipe, run: Path) -> str:
    """Return the recipe as YAML, its paths relative to the run: equal from any working directory."""
    data = dump(recipe)
    for place, path in _paths(recipe).items():
        _set(data, place, os.path.relpath(path.resolve(), run.resolve()))
    return yaml.safe_dump(data, sort_keys=False)


def input_hashes(recipe: Recipe) -> dict[str, str]:
    """Return the hash of what each path of a recipe leads to, by its key path."""
    return {place: _input_hash(path) for place, path in _paths(recipe).items()}


def changes(there: str, here: str, recipe: Recipe, known: Mapping[str, str]) -> list[Change]:
    """Every place in which a recipe differs from the one that a run keeps, defaults written out.

    Paths that lead to what they led to when the run was started are no difference.

    Args:
        there: the text that the run keeps.
        here: the text of ``recipe``.
        recipe: as it is now.
        known: the `input_hashes` that the run keeps.

    Raises:
        ZippkitError: what the run keeps is no recipe.
    """
    try:
        old, new = yaml.safe_load(there), yaml.safe_load(here)
        for place, path in _paths(recipe).items():
            given = value_at(old, tuple(place.split(".")))
            if given not in (None, _get(new, place)) and known.get(place) == _input_hash(path) != "":
                _set(old, place, _get(new, place))
        # As text, because the order of towers and links counts.
        specs = [yaml.safe_dump(data.pop("spec"), sort_keys=False) for data in (old, new)]
        plain = [_with_defaults(data, recipe) for data in (old, new)]
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ZippkitError(f"recipe.yaml of the run is not one that zippkit wrote: {error}") from None
    changed = [Change(("spec",), *first_difference(*specs))] if specs[0] != specs[1] else []
    return changed + list(differences(plain[0], plain[1]))


def _with_defaults(data: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A recipe's plain data, without its spec."""
    return Recipe.model_validate({**data, "spec": recipe.spec}).model_dump(mode="json", exclude={"spec"})


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


def first_difference(there: str, here: str) -> tuple[str, str]:
    """Return the first line in which two texts differ, of both; what has ended says nothing."""
    pairs = zip_longest(there.splitlines(), here.splitlines(), fillvalue="")
    return next(((old.strip(), new.strip()) for old, new in pairs if old != new), ("", ""))
