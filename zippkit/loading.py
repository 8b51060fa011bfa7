"""A YAML file to a checked CompositionSpec, with every problem at once and no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zippkit.errors import Problem, SpecError, ZippkitError
from zippkit.plan.graph import find_graph
from zippkit.plan.parts import SPEC, checkpoint_folder, compare
from zippkit.spec.composition_spec import CompositionSpec, LinkSpec, TowerSpec
from zippkit.spec.recipe import Recipe
from zippkit.spec.validation import Complaint, validate
from zippkit.spec.yaml_document import Document, Place, override, read_yaml


def beside(path: str, file: str | Path) -> str:
    """A relative path in a YAML file is looked up beside that file first, then in the working directory.

    What is found comes back as an absolute path, so that a run can be looked at from anywhere.
    """
    for folder in (Path(file).parent, Path()):
        # Path.exists raises on a name that is too long for the file system.
        if os.path.exists(folder / path):  # noqa: PTH110
            return os.path.abspath(folder / path)  # noqa: PTH100
    return path


def resolve_paths(data: Any, file: str | Path) -> Any:
    """The spec's data with the ``weights`` of its towers, and the ``path`` in their configs, found beside ``file``."""
    towers = data.get("towers") if isinstance(data, dict) else None
    for tower in towers.values() if isinstance(towers, dict) else ():
        if isinstance(tower, dict) and isinstance(tower.get("weights"), str):
            tower["weights"] = beside(tower["weights"], file)
        config = tower.get("config") if isinstance(tower, dict) else None
        if isinstance(config, dict) and isinstance(config.get("path"), str):
            config["path"] = beside(config["path"], file)
    return data


def check_spec(data: Any) -> tuple[CompositionSpec | None, list[Complaint]]:
    """The spec and everything that is wrong with it: keys, types, kinds, shapes, and the graph."""
    spec, complaints = validate(CompositionSpec, data)
    if spec is None:
        return None, [*complaints, *_sound_sections(data)]
    return spec, find_graph(spec)[1]


def _sound_sections(data: Any) -> Iterator[Complaint]:
    """What is wrong inside the towers and links whose own keys and types are sound, where those of others are not."""
    models: tuple[tuple[str, type[TowerSpec | LinkSpec]], ...] = (("towers", TowerSpec), ("links", LinkSpec))
    for key, model in models:
        sections = data.get(key) if isinstance(data, dict) else None
        pairs = (
            sections.items()
            if isinstance(sections, dict)
            else enumerate(sections if isinstance(sections, list) else ())
        )
        for name, section in pairs:
            sound, _ = validate(model, section)
            for place, message in sound.complaints() if sound else ():
                yield (key, name, *place), message


def spec_of(document: Document, place: Place = ()) -> CompositionSpec:
    """The spec that stands at ``place`` of a YAML file.

    Raises:
        SpecError: every problem found, with its line.
    """
    data = document.data
    for part in place:
        data = data[part]
    spec, complaints = check_spec(resolve_paths(data, document.file))
    if spec is None or complaints:
        problems: list[Problem] = [document.problem((*place, *where), message) for where, message in complaints]
        raise SpecError(problems)
    return spec


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> CompositionSpec:
    """Read and check a composition spec; ``overrides`` are ``key.path=value``.

    Raises:
        SpecError: every problem found, with file, line and key.
    """
    return spec_of(read_yaml(path, overrides))


def _start_complaints(recipe: Recipe) -> Iterator[Complaint]:
    """What does not fit between the spec and what it starts from."""
    if recipe.start_from is None:
        return
    try:
        spec = load_spec(checkpoint_folder(recipe.start_from) / SPEC)
        transfer, misfits = compare(spec, recipe.spec)
    except ZippkitError as error:
        yield ("start_from",), f"not a finished run or a checkpoint: {error}"
        return
    for misfit in misfits:
        yield ("start_from",), misfit
    for name in recipe.pretrain:
        if f"towers.{name}" in transfer.taken:
            yield ("pretrain", name), f"tower {name!r} comes trained from {recipe.start_from}; remove one of the two"


def _read(document: Document, overrides: Sequence[str]) -> list[Problem]:
    """Put the recipe's spec in its place, and say what is wrong with that spec."""
    inside = [setting for setting in overrides if setting.startswith("spec.")]
    override(document, [setting for setting in overrides if setting not in inside])
    given = document.data.get("spec")
    if not isinstance(given, str):
        override(document, inside)
    try:
        if isinstance(given, str):
            # Overrides reach into the spec's own file, and its problems are told with that file's lines.
            file = beside(given, document.file)
            document.data["spec"] = load_spec(file, [s.removeprefix("spec.") for s in inside])
        elif "spec" in document.data:
            document.data["spec"] = spec_of(document, ("spec",))
    except SpecError as error:
        return list(error.problems)
    return []


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, started: bool = False) -> Recipe:
    """Read and check a recipe with its spec; ``overrides`` are ``key.path=value``.

    A run that has ``started`` has taken over what it started from, which may be gone by now.

    Raises:
        SpecError: every problem found, with file, line and key.
    """
    return recipe_of(read_yaml(path), overrides, started=started)


def recipe_of(document: Document, overrides: Sequence[str] = (), *, started: bool = False) -> Recipe:
    """The recipe that a YAML document holds; its paths are looked up beside the document's file.

    Raises:
        SpecError: as `load_recipe`.
    """
    problems = _read(document, overrides)
    for key in ("data", "start_from"):
        if isinstance(document.data.get(key), str):
            document.data[key] = beside(document.data[key], document.file)
    recipe, complaints = validate(Recipe, document.data)
    # What is wrong with the spec has been told already, place by place.
    complaints = [(place, message) for place, message in complaints if place[0] != "spec" or not problems]
    complaints += recipe.complaints() if recipe is not None else []
    complaints += _start_complaints(recipe) if recipe is not None and not started else []
    problems += [document.problem(place, message) for place, message in complaints]
    if recipe is None or problems:
        raise SpecError(problems)
    return recipe


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> CompositionSpec | Recipe:
    """Read and check a spec or a recipe, whichever the file holds: a recipe has a key ``spec``.

    Raises:
        SpecError: every problem found, with file, line and key.
    """
    return load_recipe(path, overrides) if "spec" in read_yaml(path).data else load_spec(path, overrides)


def spec_at(path: str | Path, overrides: Sequence[str] = ()) -> CompositionSpec:
    """The composition of a spec, a recipe, a checkpoint or a run, whichever is there.

    Raises:
        SpecError: every problem found, with file, line and key.
    """
    path = Path(path)
    if path.is_dir():
        started = path / "recipe.yaml"
        if started.exists() and not (path / "model").exists():
            return load_recipe(started, [f"spec.{setting}" for setting in overrides], started=True).spec
        return load_spec(checkpoint_folder(path) / SPEC, overrides)
    found = load_any(path, overrides)
    return found.spec if isinstance(found, Recipe) else found
