"""YAML text to plain data with the line of every key, duplicates refused, size and aliases bounded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from zippkit.errors import Problem, SpecError

Place = tuple[str | int, ...]
MAX_BYTES = 256 * 1024
MAX_VALUES = 20_000


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads ``1e-3`` as a number, as YAML 1.2 does."""


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def dotted(place: Place) -> str:
    """``("links", 0, "every")`` as ``links[0].every``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


@dataclass(frozen=True)
class Document:
    """One YAML file: its data, and where each value stands."""

    file: str
    data: Any
    lines: dict[Place, int] = field(default_factory=dict)

    def line(self, place: Place) -> int:
        """1-based line of a value, or of the nearest parent that the file names; 0 where there is none."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 0)

    def problem(self, place: Place, message: str) -> Problem:
        return Problem(self.file, self.line(place), dotted(place), message)


class _Reader:
    def __init__(self, file: str, loader: _Loader) -> None:
        self.file = file
        self.loader = loader
        self.lines: dict[Place, int] = {}
        self.problems: list[Problem] = []
        self.n_values = 0

    def read(self, node: yaml.Node, place: Place) -> Any:
        # Aliases share one node, so counting visits bounds what they expand to.
        self.n_values += 1
        if self.n_values > MAX_VALUES:
            raise SpecError([Problem(self.file, 0, "", f"more than {MAX_VALUES} values (aliases count each time)")])
        self.lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*place, i)) for i, child in enumerate(node.value)]
        try:
            return self.loader.construct_object(node)  # type: ignore[no-untyped-call]
        except (yaml.YAMLError, ValueError) as error:
            message = str(getattr(error, "problem", None) or error)
            self.problems.append(Problem(self.file, node.start_mark.line + 1, dotted(place), message))
            return None

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self.problems.append(Problem(self.file, line, dotted(place), "a key must be a plain word"))
                continue
            if key in data:
                first = self.lines[(*place, key)]
                message = f"duplicate key {key!r}, first given on line {first}; keep one of them"
                self.problems.append(Problem(self.file, line, dotted((*place, key)), message))
                continue
            self.lines[(*place, key)] = line
            data[key] = self.read(value_node, (*place, key))
        return data


def _parse(text: str, file: str) -> Document:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise SpecError([Problem(file, 0, "", "the file is empty; expected a mapping with `name:` and more")])
        reader = _Reader(file, loader)
        data = reader.read(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError([Problem(file, mark.line + 1 if mark else 0, "", f"not valid YAML: {reason}")]) from error
    except RecursionError as error:
        raise SpecError([Problem(file, 0, "", "nested too deeply (or an alias that holds itself)")]) from error
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]
    if reader.problems:
        raise SpecError(reader.problems)
    if not isinstance(data, dict):
        raise SpecError([Problem(file, 1, "", f"expected a mapping of keys to values, got {type(data).__name__}")])
    return Document(file, data, reader.lines)


def _path_parts(key: str) -> Iterator[str | int]:
    for part in key.replace("[", ".").replace("]", "").split("."):
        yield int(part) if part.isdigit() else part


def _override(document: Document, setting: str) -> None:
    """Apply ``key.path=value``; the value is YAML."""
    key, separator, value = setting.partition("=")
    place = tuple(_path_parts(key))
    if not separator or "" in place:
        raise SpecError([Problem(setting, 0, "", "an override is written key.path=value, as in towers.text.freeze=true")])
    parent: Any = document.data
    try:
        for part in place[:-1]:
            parent = parent.setdefault(part, {}) if isinstance(parent, dict) else parent[part]
        parsed = _parse(f"value: {value}", f"override {key}").data["value"]
        parent[place[-1]] = parsed
    except (TypeError, IndexError, KeyError, AttributeError) as error:
        raise SpecError([Problem(document.file, 0, key, "override names a place that is not there")]) from error


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Read one YAML file and apply ``key.path=value`` overrides.

    Raises:
        SpecError: not there, too large, not UTF-8, not YAML, duplicate keys, an alias bomb.
    """
    file = str(path)
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise SpecError([Problem(file, 0, "", f"larger than {MAX_BYTES // 1024} KiB, which no spec or recipe is")])
        document = _parse(raw.decode("utf-8"), file)
    except OSError as error:
        raise SpecError([Problem(file, 0, "", f"cannot be read: {error.strerror or error}")]) from error
    except UnicodeDecodeError as error:
        raise SpecError([Problem(file, 0, "", f"not UTF-8 text (byte {error.start})")]) from error
    for setting in overrides:
        _override(document, setting)
    return document
