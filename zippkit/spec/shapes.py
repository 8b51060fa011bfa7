"""Fields that a user may write in a short or a long form: the value's shape says which, so that one message is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Discriminator, Tag

WORD, MAPPING, LIST = Tag("<word>"), Tag("<mapping>"), Tag("<list>")
"""Marks of a union's members; what pydantic puts into an error's place for them is taken out again (`untagged`)."""


def _shape(value: Any, else_: Tag) -> str:
    if isinstance(value, Mapping | BaseModel):
        return MAPPING.tag
    return LIST.tag if isinstance(value, list | tuple) else else_.tag


WORD_OR_MAPPING = Discriminator(lambda value: WORD.tag if _shape(value, WORD) == LIST.tag else _shape(value, WORD))
"""Such as a path, or named paths with settings."""
WORD_OR_LIST = Discriminator(lambda value: WORD.tag if _shape(value, WORD) == MAPPING.tag else _shape(value, WORD))
"""Such as one name, or several."""
MAPPING_OR_LIST = Discriminator(lambda value: _shape(value, MAPPING))
"""Such as one section, or several in order."""


def untagged(place: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """A place in the user's data, of one in pydantic's errors."""
    return tuple(part for part in place if part not in (WORD.tag, MAPPING.tag, LIST.tag))
