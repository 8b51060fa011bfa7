"""Keys of runs and pre-trained towers: hashes of everything that decides their outcome."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from zippkit.data.manifest import DATASET_MANIFEST, sha256_of
from zippkit.errors import CheckpointError
from zippkit.plan.parts import CHECKPOINT_MANIFEST, checkpoint_folder
from zippkit.spec.derived_recipe import dump, single_tower
from zippkit.spec.hf_folder import CONFIG
from zippkit.spec.kinds import read_json
from zippkit.spec.recipe import Recipe

_READ_WHOLE = 50 * 1024**2
"""A file of fewer bytes is known by its content, a larger one by its size and time."""


def recipe_hash(recipe: Recipe) -> str:
    """Hash the recipe, its seed, and the content of its data and of the weights that it starts from."""
    data = {**dump(recipe), "data": _data(recipe)}
    for name, tower in recipe.spec.towers.items():
        if tower.weights is not None:
            data["spec"]["towers"][name]["weights"] = _files(tower.weights, config=not tower.config)
    if recipe.start_from is not None:
        data["start_from"] = _checkpoint(recipe.start_from)
    return _hash(data)


def tower_hash(recipe: Recipe, tower: str) -> str:
    """Hash everything that decides a tower's pre-training, whatever it is zipped with later."""
    spec = dump(single_tower(recipe.spec, tower))
    phase = dump(recipe.pretrain[tower])
    return _hash([spec, phase, recipe.seed, recipe.split, _data(recipe), recipe.device])


def _data(recipe: Recipe) -> str | dict[str, Any]:
    """Each dataset by its manifest, wherever it lies, and its section; by its path while it is not there."""
    if isinstance(recipe.data, Path):
        return _dataset(recipe.data)
    return {name: {**dump(source), "path": _dataset(source.path)} for name, source in recipe.sources.items()}


def _dataset(folder: Path) -> str:
    manifest = folder / DATASET_MANIFEST
    return sha256_of(manifest) if manifest.is_file() else str(folder)


def _checkpoint(start: Path) -> list[Any]:
    """A run or checkpoint by what its manifest says and what it holds, wherever it and its towers lie."""
    folder = checkpoint_folder(start)
    try:
        manifest = read_json(folder / CHECKPOINT_MANIFEST)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    towers: dict[str, dict[str, Any]] = manifest.get("towers", {})
    elsewhere = [(folder / tower.pop("source", "")).resolve() for tower in towers.values()]
    held = [*sorted(folder.rglob("*.safetensors")), *(path for path in elsewhere if path.exists() and path != folder)]
    return [manifest, *(_files(path) for path in held)]


def _files(path: Path, config: bool = False) -> list[str]:
    """A file, or the weights of a folder; with its config where that replaces the spec's."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if config and (path / CONFIG).is_file():
        files.append(path / CONFIG)
    return [_file(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@lru_cache
def _file(file: Path, size: int, time: int) -> str:
    return sha256_of(file) if size < _READ_WHOLE else f"{file.name} {size} {time}"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
