"""YAML text to plain data with the line of every key, duplicates refused, size and aliases bounded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from zippkit.errors import Problem, SpecError

KeyPath = tuple[str | int, ...]
MAX_BYTES = 256 * 1024
MAX_VALUES = 20_000
MAX_DEPTH = 64
MAX_INTEGER = 2**63 - 1


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads ``1e-3`` as a number, as YAML 1.2 does, and counts values and depth while it reads.

    Its scanner takes the square of the depth, so a deep file is refused before it is read to its end.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.n_values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.n_values += parent is None or index is not None  # A mapping's keys have no index.
        _check_bounds(self.n_values, self.depth)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _BoundError(Exception):
    """More values or levels than any spec or recipe has."""


def _check_bounds(n_values: int, depth: int) -> None:
    if n_values > MAX_VALUES:
        raise _BoundError(f"more than {MAX_VALUES} values (aliases count each time)")
    if depth > MAX_DEPTH:
        raise _BoundError("nested too deeply (or an alias that holds itself)")


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def dotted(key_path: KeyPath) -> str:
    """``("links", 0, "every")`` as ``links[0].every``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key_path)
    return text.removeprefix(".")


@dataclass(frozen=True)
class Document:
    """One YAML file: its data, and where each value stands."""

    file: str
    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    """Duplicate keys and values that cannot be read; the rest of the file is there."""
    unread: frozenset[KeyPath] = frozenset()
    """Key paths whose values could not be read."""
    files: dict[KeyPath, str] = field(default_factory=dict)
    """The base file (`zippkit.spec.inheritance`) in which a value stands, if it does not stand in ``file``."""

    def line(self, key_path: KeyPath) -> int:
        """1-based line of a value, or of the nearest parent that the file names; 0 where there is none."""
        return self.lines.get(self._known(key_path), 0)

    def file_of(self, key_path: KeyPath) -> str:
        """The file in which a value stands, or the nearest parent that a file names."""
        return self.files.get(self._known(key_path), self.file)

    def _known(self, key_path: KeyPath) -> KeyPath:
        while key_path and key_path not in self.lines:
            key_path = key_path[:-1]
        return key_path

    def forget_lines(self, key_path: KeyPath) -> None:
        """Drop the lines of ``key_path`` and below, whose value does not come from the file any more."""
        for known in [known for known in self.lines if known[: len(key_path)] == key_path]:
            del self.lines[known]
            self.files.pop(known, None)
        self.lines[key_path] = 0

    def problem(self, key_path: KeyPath, message: str) -> Problem:
        return Problem(self.file_of(key_path), self.line(key_path), dotted(key_path), message)

    def told(self, complaints: Iterable[tuple[KeyPath, str]], inside: KeyPath = ()) -> list[Problem]:
        """Problems of the file itself, and complaints about what stands ``inside`` it.

        Nothing is said about the values that could not be read.
        """
        placed = [((*inside, *key_path), message) for key_path, message in complaints]
        return self.problems + [
            self.problem(key_path, message)
            for key_path, message in placed
            if not any(key_path[: len(unread)] == unread for unread in self.unread)
        ]


class _Reader:
    def __init__(self, file: str, loader: _Loader) -> None:
        self.file = file
        self.loader = loader
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.unread: set[KeyPath] = set()
        self.n_values = 0

    def read(self, node: yaml.Node, key_path: KeyPath) -> Any:
        # Aliases share one node, so counting visits bounds what they expand to.
        self.n_values += 1
        _check_bounds(self.n_values, len(key_path))
        self.lines.setdefault(key_path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key_path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*key_path, i)) for i, child in enumerate(node.value)]
        try:
            value = self.loader.construct_object(node)
        except Exception as error:
            # PyYAML's constructors raise whatever they stumble over, such as a KeyError for `!!bool maybe`.
            return self._unread(
                node, key_path, f"not a value that YAML knows ({getattr(error, 'problem', None) or error})"
            )
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            return self._unread(node, key_path, "a number of more than 64 bits, which nothing here takes")
        return value

    def _unread(self, node: yaml.Node, key_path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.file, node.start_mark.line + 1, dotted(key_path), message))
        self.unread.add(key_path)

    def _mapping(self, node: yaml.MappingNode, key_path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or not key.isprintable():
                self.problems.append(Problem(self.file, line, dotted(key_path), "a key must be a plain word"))
                continue
            if key in data:
                first = self.lines[(*key_path, key)]
                message = f"duplicate key {key!r}, first given on line {first}; keep one of them"
                self.problems.append(Problem(self.file, line, dotted((*key_path, key)), message))
                continue
            self.lines[(*key_path, key)] = line
            data[key] = self.read(value_node, (*key_path, key))
        return data


def _parse(text: str, file: str) -> Document:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise SpecError([Problem(file, 0, "", "the file is empty; expected a mapping with `name:` and more")])
        reader = _Reader(file, loader)
        data = reader.read(node, ())
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError([Problem(file, line, "", f"not text: character {error.character:#x}")]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError([Problem(file, mark.line + 1 if mark else 0, "", f"not valid YAML: {reason}")]) from error
    except _BoundError as error:
        raise SpecError([Problem(file, 0, "", str(error))]) from error
    except (ValueError, OverflowError) as error:
        # PyYAML's scanner converts escapes such as "\UFFFFFFFF" without looking at their size.
        raise SpecError([Problem(file, 0, "", f"not valid YAML: {error}")]) from error
    if not isinstance(data, dict):
        message = f"expected a mapping of keys to values, got {type(data).__name__}"
        raise SpecError(reader.problems or [Problem(file, reader.lines[()], "", message)])
    return Document(file, data, reader.lines, reader.problems, frozenset(reader.unread))


def _path_parts(key: str) -> Iterator[str | int]:
    for part in key.replace("[", ".").replace("]", "").split("."):
        yield int(part) if part.isdecimal() else part


def _override(document: Document, setting: str) -> None:
    """Apply ``key.path=value``; the value is YAML."""
    key, separator, value = setting.partition("=")
    parts = tuple(_path_parts(key))
    if not separator or "" in parts or not key.isprintable():
        message = f"got {setting!r}; an override is written key.path=value, as in towers.text.freeze=true"
        raise SpecError([Problem(document.file, 0, "", message)])
    given = _parse(f"value: {value}", f"override {key}")
    if given.problems:
        raise SpecError(given.problems)
    parsed = given.data["value"]
    parent: Any = document.data
    key_path: list[str | int] = []
    try:
        for part in parts[:-1]:
            key_path.append(part if isinstance(parent, list) else str(part))
            parent = parent.setdefault(key_path[-1], {}) if isinstance(parent, dict) else parent[key_path[-1]]
        key_path.append(parts[-1] if isinstance(parent, list) else str(parts[-1]))
        parent[key_path[-1]] = parsed
    except (TypeError, IndexError) as error:
        raise SpecError([Problem(document.file, 0, key, "override names a place that is not there")]) from error
    document.forget_lines(tuple(key_path))


def beside(path: str, file: str | Path) -> str:
    """A relative path in a YAML file is looked up beside that file first, then in the working directory.

    What is found comes back as an absolute path, so that a run can be looked at from anywhere.
    """
    for folder in (Path(file).parent, Path()):
        # Path.exists raises on a name that is too long for the file system.
        if os.path.exists(folder / path):  # noqa: PTH110
            return os.path.abspath(folder / path)  # noqa: PTH100
    return path


def parse_file(path: str | Path) -> Document:
    """Read one YAML file as it stands (`zippkit.spec.inheritance` merges its bases in).

    Raises:
        SpecError: not there, too large, not UTF-8, not YAML, an alias bomb.
    """
    file = str(path)
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise SpecError([Problem(file, 0, "", f"larger than {MAX_BYTES // 1024} KiB, which no spec or recipe is")])
        return _parse(raw.decode("utf-8"), file)
    except UnicodeDecodeError as error:
        raise SpecError([Problem(file, 0, "", f"not UTF-8 text (byte {error.start})")]) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError([Problem(file, 0, "", f"cannot be read: {reason}")]) from error


def override(document: Document, settings: Sequence[str]) -> None:
    """Apply ``key.path=value`` overrides to a document, in place.

    Raises:
        SpecError: overrides that do not fit, all of them.
    """
    problems: list[Problem] = []
    for setting in settings:
        try:
            _override(document, setting)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
