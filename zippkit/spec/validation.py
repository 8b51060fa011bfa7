"""pydantic's errors as problems with a line: the value seen, what was expected, the nearest valid name."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from zippkit.errors import did_you_mean
from zippkit.spec.yaml_document import Place

M = TypeVar("M", bound=BaseModel)
Complaint = tuple[Place, str]
"""Where in the YAML, and what is wrong there."""


def field_names(model: type[BaseModel]) -> list[str]:
    """The keys that a user may write for ``model``."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _field_type(model: type[BaseModel], key: str) -> Any:
    for name, field in model.model_fields.items():
        if key in (name, field.alias):
            return field.annotation
    return None


def _models(annotation: Any, place: Place) -> Iterator[type[BaseModel]]:
    """The models that ``annotation`` holds at ``place`` (a place below that annotation)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not place:
            yield annotation
        else:
            yield from _models(_field_type(annotation, str(place[0])), place[1:])
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        for argument in arguments:
            yield from _models(argument, place)
    elif origin in (dict, list, tuple) and place:
        yield from _models(arguments[-1 if origin is dict else 0], place[1:])


_EXPECTATIONS = {
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "list_type": "expected a list",
    "path_type": "expected a path",
}


def _expectation(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        return f"expected {context['expected']}"
    if kind == "value_error":
        return str(context["error"])
    text = str(error["msg"]).replace("Input should be", "expected")
    return _EXPECTATIONS.get(kind, text[0].lower() + text[1:])


def _message(model: type[BaseModel], error: Any) -> str:
    place: Place = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        parents = list(_models(model, place[:-1]))
        names = field_names(parents[0]) if parents else []
        return f"unknown key {place[-1]!r}{did_you_mean(place[-1], names)}"
    if error["type"] == "missing":
        return f"required key {place[-1]!r} is missing"
    if error["type"] == "value_error" and any(_models(model, place)):
        return _expectation(error)  # It speaks of several keys of a section, and names their values itself.
    seen = repr(error["input"])
    return f"{_expectation(error)}, got {seen if len(seen) <= 80 else seen[:77] + '...'}"


def complaints_of(model: type[BaseModel], failure: ValidationError) -> list[Complaint]:
    """What pydantic found, in our words."""
    # An unknown word inside a union is told once for each member: keep the first message of a place.
    complaints: dict[Place, str] = {}
    for error in failure.errors(include_url=False):
        # pydantic appends "[key]" to the place of a key that is wrong itself.
        place = error["loc"][:-1] if error["loc"][-1:] == ("[key]",) else error["loc"]
        complaints.setdefault(place, _message(model, error))
    return list(complaints.items())


def validate(model: type[M], data: Any, prefix: Place = ()) -> tuple[M | None, list[Complaint]]:
    """The validated model, or everything that is wrong with ``data``."""
    try:
        return model.model_validate(data), []
    except ValidationError as failure:
        return None, [((*prefix, *place), message) for place, message in complaints_of(model, failure)]
