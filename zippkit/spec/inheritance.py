"""``base: other.yaml``: a YAML file that says only in what it differs from another one.

Mappings are merged key by key; anything else, lists too, replaces the base's value. A mapping of another ``kind`` than
the base's replaces it whole, and ``null`` takes a key out. A recipe's ``spec`` may have a base of its own; where it has
none and the recipe's base names a spec's file, that file is its base. Paths in a base are looked up beside the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zippkit.errors import Problem, SpecError
from zippkit.spec.yaml_document import Document, KeyPath, beside, override, parse_file

BASE = "base"
SPEC: KeyPath = ("spec",)


def read_whole(path: str | Path, below: tuple[Path, ...] = ()) -> Document:
    """Read a YAML file with its bases merged in.

    Args:
        path: the file.
        below: the files that have it as a base, and those that have them.

    Raises:
        SpecError: this file or a base cannot be read, or is its own base; with the place that names the base.
    """
    document, below = parse_file(path), (*below, Path(path).resolve())
    own = document.data.get("spec")
    # The whole file first: a spec inside it may take its base from there.
    base = _base_of(document, (), below)
    if base is not None:
        named = base.data.get("spec")
        if isinstance(own, dict) and isinstance(named, str) and BASE not in own:
            own[BASE] = beside(named, base.file_of(SPEC))
        if isinstance(own, dict) and BASE in own:
            base.data.pop("spec", None)
        document = _merged(base, document, ())
    if isinstance(document.data.get("spec"), dict):
        inner = _base_of(document, SPEC, below)
        document = document if inner is None else _merged(inner, document, SPEC)
    return document


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Read one YAML file with its bases and apply ``key.path=value`` overrides.

    Raises:
        SpecError: as `read_document`, and duplicate keys or values that cannot be read.
    """
    document = read_document(path, overrides)
    if document.problems:
        raise SpecError(document.problems)
    return document


def read_document(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """As `read_yaml`, for who tells `Document.problems` together with what else is wrong.

    Raises:
        SpecError: not there, too large, not UTF-8, not YAML, an alias bomb; a base that is none; overrides that do not
            fit.
    """
    document = read_whole(path)
    override(document, overrides)
    return document


def _base_of(document: Document, key_path: KeyPath, below: tuple[Path, ...]) -> Document | None:
    """Read the base that the section at ``key_path`` names, and take the key out of it."""
    section = document.data[key_path[0]] if key_path else document.data
    if BASE not in section:
        return None
    place, named = (*key_path, BASE), section.pop(BASE)
    if not isinstance(named, str):
        raise SpecError([document.problem(place, f"expected the path of a YAML file, got {named!r}")])
    file = Path(beside(named, document.file_of(place)))
    if file.resolve() in below:
        circle = " -> ".join([*(each.name for each in below[below.index(file.resolve()) :]), file.name])
        raise SpecError([document.problem(place, f"a file cannot be its own base: {circle}")])
    if not file.is_file():
        raise SpecError([document.problem(place, f"no file {named!r}; expected one beside {document.file_of(place)}")])
    return read_whole(file, below)


def _merged(base: Document, own: Document, key_path: KeyPath) -> Document:
    """Merge a base into the section at ``key_path`` of a document; each value keeps the file and line that it is of."""
    lines, files = dict(own.lines), dict(own.files)
    section = own.data[key_path[0]] if key_path else own.data

    def take(place: KeyPath) -> None:
        """Keep where the base's value at ``place``, and all below it, stand."""
        for known, line in base.lines.items():
            if known[: len(place)] == place:
                lines[(*key_path, *known)] = line
                files[(*key_path, *known)] = base.file_of(known)

    def merge(there: dict[str, Any], here: dict[str, Any], place: KeyPath) -> dict[str, Any]:
        kinds = [each["kind"] for each in (there, here) if "kind" in each]
        if len(kinds) == 2 and kinds[0] != kinds[1]:
            return here
        result = dict(there)
        for key in there.keys() - here.keys():
            take((*place, key))
        for key, value in here.items():
            if value is None:
                result.pop(key, None)
            elif isinstance(value, dict) and isinstance(there.get(key), dict):
                result[key] = merge(there[key], value, (*place, key))
            else:
                result[key] = value
        return result

    result = merge(base.data, section, ())
    data = {**own.data, key_path[0]: result} if key_path else result
    problems = [*own.problems, *(_inside(problem, key_path) for problem in base.problems)]
    unread = own.unread | {(*key_path, *place) for place in base.unread}
    return replace(own, data=data, lines=lines, files=files, problems=problems, unread=frozenset(unread))


def _inside(problem: Problem, key_path: KeyPath) -> Problem:
    """Tell a base's problem by the key path that it has in the whole; file and line stay the base's."""
    return replace(problem, key=".".join([*map(str, key_path), problem.key])) if key_path else problem
