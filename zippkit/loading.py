"""A YAML file to a checked CompositionSpec, with every problem at once and no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zippkit.errors import Problem, SpecError
from zippkit.graph import find_graph
from zippkit.spec import CompositionSpec, LinkSpec, TowerSpec
from zippkit.validation import Complaint, validate
from zippkit.yaml_file import Document, Place, read_yaml


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
