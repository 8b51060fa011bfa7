"""Kinds by name: towers and links found through entry points, and loaded only when a spec names them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any, Literal

from zippkit.errors import ZippkitError, did_you_mean

Group = Literal[
    "zippkit.towers",
    "zippkit.links",
    "zippkit.parts",
    "zippkit.tokenizers",
    "zippkit.scorers",
    "zippkit.readers",
    "zippkit.trackers",
]
TOWERS: Group = "zippkit.towers"
LINKS: Group = "zippkit.links"
PARTS: Group = "zippkit.parts"
TOKENIZERS: Group = "zippkit.tokenizers"
SCORERS: Group = "zippkit.scorers"
READERS: Group = "zippkit.readers"
TRACKERS: Group = "zippkit.trackers"


class UnknownKindError(ZippkitError):
    """A kind that no installed package registers, or that cannot be imported."""


@dataclass(frozen=True)
class Kind:
    """One registered kind and the package that brings it."""

    name: str
    group: Group
    value: str
    package: str


@cache
def _scanned(group: Group, path: tuple[tuple[str, int], ...]) -> tuple[tuple[EntryPoint, str], ...]:
    del path
    try:
        found = entry_points(group=group)
    except UnicodeDecodeError as error:
        told = f"its entry_points.txt is not UTF-8 ({error}); install it again"
        raise UnknownKindError(f"{_not_text()}: {told}") from None
    return tuple((entry, entry.dist.name if entry.dist else "?") for entry in found)


def _not_text() -> str:
    """The installed package that nobody can read."""
    for package in distributions():
        try:
            package.read_text("entry_points.txt")
        except UnicodeDecodeError:
            return f"installed package {package.name}"
    return "an installed package"


def _entries(group: Group) -> tuple[tuple[EntryPoint, str], ...]:
    """Every installed entry point and the package that brings it.

    Reading them takes 20 ms, so they are read again only when the import path or one of its folders has changed: an
    installer changes the folder into which it installs.
    """
    return _scanned(group, tuple((folder, _changed(folder)) for folder in sys.path))


def _changed(folder: str) -> int:
    try:
        return Path(folder or ".").stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


def kinds(group: Group) -> list[Kind]:
    """Every registered kind of a group, by name. Nothing is imported."""
    found = {Kind(entry.name, group, entry.value, package) for entry, package in _entries(group)}
    return sorted(found, key=lambda kind: (kind.name, kind.package))


@cache
def _load(entry: EntryPoint) -> Any:
    return entry.load()


def _find(group: Group, name: str) -> Any:
    found = [(entry, package) for entry, package in _entries(group) if entry.name == name]
    if not found:
        what = group.removeprefix("zippkit.").rstrip("s")
        valid = did_you_mean(name, [kind.name for kind in kinds(group)])
        raise UnknownKindError(f"no {what} of kind {name!r} is registered{_meant(group, name) or valid}")
    packages = {entry.value: package for entry, package in found}
    if len(packages) > 1:
        raise UnknownKindError(f"kind {name!r} is registered by several packages: {sorted(packages.values())}")
    entry, _ = found[0]
    return _imported(name, entry.value, lambda: _load(entry))


def _meant(group: Group, name: str) -> str:
    """Of the kind that runs another library's models of this name, if one does: how it is written."""
    for kind in kinds(group) if group == TOWERS else ():
        try:
            runs = config_class(group, kind.name).runs
        except (UnknownKindError, AttributeError):
            # That this one is broken is told to whoever names it.
            continue
        if runs(name):
            return f"; expected `kind: {kind.name}` with `config: {{path: FOLDER}}` of a `{name}` model"
    return ""


def _imported(name: str, value: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (Exception, SystemExit) as error:
        # A plugin's own code runs here, so anything can come out, a `sys.exit(0)` among it.
        reason = f"{type(error).__name__}: {error}"
        raise UnknownKindError(f"kind {name!r} ({value}) cannot be imported: {reason}") from error


def config_class(group: Group, name: str) -> Any:
    """The Config class of a kind. An entry point names it, or names the Tower or Link that holds it as ``Config``."""
    found = _find(group, name)
    if getattr(found, "implementation", ""):
        return found
    if not isinstance(getattr(found, "Config", None), type):
        raise UnknownKindError(
            f"kind {name!r} is a {type(found).__name__} without a `Config` class; expected a Tower or Link"
        )
    return found.Config


def implementation(group: Group, name: str) -> Any:
    """The Tower or Link class of a kind; imports torch."""
    found = _find(group, name)
    target = getattr(found, "implementation", "")
    if not target:
        return found
    module, _, attribute = target.partition(":")
    return _imported(name, target, lambda: getattr(import_module(module), attribute))
