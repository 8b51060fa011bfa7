"""Where a run's metrics go besides its own files: a recipe's ``track``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import Field

from zippkit.spec.registry import TRACKERS, UnknownKindError, config_class
from zippkit.spec.shapes import MAPPING, WORD, WORD_OR_MAPPING
from zippkit.spec.validation import Complaint, validate
from zippkit.spec.words import Name

Tracked: TypeAlias = Annotated[
    Annotated[Name, WORD] | Annotated[dict[Name, dict[str, Any]], MAPPING, Field(min_length=1, max_length=1)],
    WORD_OR_MAPPING,
]
"""The kind of a tracker, or its kind and its settings."""


def chosen_trackers(track: Sequence[Name | dict[Name, dict[str, Any]]]) -> dict[Name, dict[str, Any]]:
    """The settings of each tracker by its kind."""
    return {kind: settings for each in track for kind, settings in _as_mapping(each).items()}


def _as_mapping(each: Name | dict[Name, dict[str, Any]]) -> dict[Name, dict[str, Any]]:
    return {each: {}} if isinstance(each, str) else each


def tracker_complaints(track: Sequence[Name | dict[Name, dict[str, Any]]] | None) -> Iterator[Complaint]:
    """Yield kinds that nobody registers, settings that do not fit, and kinds that are named twice."""
    seen: set[Name] = set()
    for i, each in enumerate(track or ()):
        ((kind, settings),) = _as_mapping(each).items()
        if kind in seen:
            yield (i,), f"{kind!r} is named already; name each kind once"
        seen.add(kind)
        try:
            config = config_class(TRACKERS, kind)
        except UnknownKindError as error:
            yield (i,), str(error)
            continue
        for place, message in validate(config, settings)[1]:
            yield (i, kind, *place), message
