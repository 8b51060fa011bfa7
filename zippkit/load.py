"""A YAML file to a checked CompositionSpec, with every problem at once and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zippkit.errors import Problem, SpecError
from zippkit.graph import find_graph
from zippkit.spec import CompositionSpec
from zippkit.validation import Complaint, validate
from zippkit.yaml_file import Document, Place, read_yaml


def beside(path: str, file: str | Path) -> str:
    """A relative path in a YAML file is looked up beside that file first, then in the working directory."""
    near = Path(file).parent / path
    return str(near) if not Path(path).is_absolute() and near.exists() else path


def resolve_paths(data: Any, file: str | Path) -> Any:
    """The spec's data with the ``weights`` of its towers found beside ``file``."""
    towers = data.get("towers") if isinstance(data, dict) else None
    for tower in towers.values() if isinstance(towers, dict) else ():
        if isinstance(tower, dict) and isinstance(tower.get("weights"), str):
            tower["weights"] = beside(tower["weights"], file)
    return data


def check_spec(data: Any) -> tuple[CompositionSpec | None, list[Complaint]]:
    """The spec and everything that is wrong with it: keys and types, then kinds and shapes, then the graph."""
    spec, complaints = validate(CompositionSpec, data)
    if spec is not None:
        complaints = list(spec.complaints())
        if not complaints:
            complaints = find_graph(spec)[1]
    return spec, complaints


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
