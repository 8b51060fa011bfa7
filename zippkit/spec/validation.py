"""pydantic's errors as problems with a line: the value seen, what was expected, the nearest valid name."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from zippkit.errors import did_you_mean
from zippkit.spec.shapes import untagged
from zippkit.spec.yaml_document import KeyPath

M = TypeVar("M", bound=BaseModel)
Complaint = tuple[KeyPath, str]
"""The key path in the YAML, and the message."""


def field_names(model: type[BaseModel]) -> list[str]:
    """The keys that a user may write for ``model``."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _field_type(model: type[BaseModel], key: str) -> Any:
    for name, field in model.model_fields.items():
        if key in (name, field.alias):
            return field.annotation
    return None


def _models(annotation: Any, key_path: KeyPath) -> Iterator[type[BaseModel]]:
    """The models that ``annotation`` holds at ``key_path`` (one below that annotation)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not key_path:
            yield annotation
        else:
            yield from _models(_field_type(annotation, str(key_path[0])), key_path[1:])
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        for argument in arguments:
            yield from _models(argument, key_path)
    elif origin in (dict, list, tuple) and key_path:
        yield from _models(arguments[-1 if origin is dict else 0], key_path[1:])


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
    key_path: KeyPath = untagged(error["loc"])
    if error["type"] == "extra_forbidden":
        parents = list(_models(model, key_path[:-1]))
        names = field_names(parents[0]) if parents else []
        return f"unknown key {key_path[-1]!r}{did_you_mean(key_path[-1], names)}"
    if error["type"] == "missing":
        return f"required key {key_path[-1]!r} is missing"
    if error["type"] == "value_error" and any(_models(model, key_path)):
        return _expectation(error)  # It speaks of several keys of a section, and names their values itself.
    seen = repr(error["input"])
    return f"{_expectation(error)}, got {seen if len(seen) <= 80 else seen[:77] + '...'}"


def complaints_of(model: type[BaseModel], failure: ValidationError) -> list[Complaint]:
    """Translate pydantic's errors into complaints."""
    # An unknown word inside a union is told once for each member: keep the first message of a place.
    complaints: dict[KeyPath, str] = {}
    for error in failure.errors(include_url=False):
        # pydantic appends "[key]" to the place of a key that is wrong itself.
        place = untagged(error["loc"])
        key_path = place[:-1] if place[-1:] == ("[key]",) else place
        complaints.setdefault(key_path, _message(model, error))
    return list(complaints.items())


def validate(model: type[M], data: Any, prefix: KeyPath = ()) -> tuple[M | None, list[Complaint]]:
    """The validated model, or everything that is wrong with ``data``."""
    try:
        return model.model_validate(data), []
    except ValidationError as failure:
        return None, [((*prefix, *key_path), message) for key_path, message in complaints_of(model, failure)]


class Examined(NamedTuple, Generic[M]):
    """The result of checking data that may be wrong in several ways."""

    whole: M | None
    """The model, if keys and types are sound."""
    rest: M | None
    """The rest of it where they are not; None if nothing is left."""
    complaints: list[Complaint]
    cuts: frozenset[KeyPath]
    """Key paths that were cut out, or replaced, to get the rest."""


def examine(
    model: type[M],
    data: Any,
    look: Callable[[M], Iterable[Complaint]],
    stand_in: Callable[[KeyPath], Any] = lambda key_path: None,
    follows: Callable[[KeyPath, frozenset[KeyPath]], bool] = lambda key_path, cuts: False,
) -> Examined[M]:
    """Everything that is wrong with ``data`` at once: keys, types, and what only a sound model can be asked.

    Where keys or types are wrong, they are cut out, and the question is put to the rest. What it says about the places
    that were cut, or about the section around them as a whole, only follows from the cuts and is not told.

    Args:
        model: what the data are to be.
        data: from YAML; stays as it is.
        look: everything that is wrong with a model of sound keys and types.
        stand_in: what a place is given instead of being cut, such as a name that the section needs; None for nothing.
        follows: whether else what is said about a place follows from the cuts.
    """
    whole, complaints = validate(model, data)
    if whole is not None:
        return Examined(whole, whole, list(look(whole)), frozenset())
    rest, later, cuts = _rest(model, _copied(data), stand_in)
    later += look(rest) if rest is not None else ()
    told = dict.fromkeys(complaints)
    told |= dict.fromkeys((p, m) for p, m in later if not _follows(p, cuts) and not follows(p, cuts))
    return Examined(None, rest, list(told), cuts)


def _follows(key_path: KeyPath, cuts: Iterable[KeyPath]) -> bool:
    return any(key_path[: len(cut)] == cut or key_path == cut[:-1] for cut in cuts)


def _copied(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _copied(value) for key, value in data.items()}
    return [_copied(value) for value in data] if isinstance(data, list) else data


_ROUNDS = 8
"""Of cutting: a section goes where a key that it needs is missing, then perhaps the section around it."""


def _rest(
    model: type[M], data: Any, stand_in: Callable[[KeyPath], Any]
) -> tuple[M | None, list[Complaint], frozenset[KeyPath]]:
    """Cut out of ``data``, in place, until the model takes the rest; with what is found only on the way."""
    cuts: set[KeyPath] = set()
    later: list[Complaint] = []
    for _ in range(_ROUNDS):
        rest, found = validate(model, data)
        if rest is not None:
            return rest, later, frozenset(cuts)
        later += found if cuts else []
        for key_path, _ in found:
            _cut(data, key_path, stand_in, cuts)
    return None, later, frozenset(cuts)


def _cut(data: Any, key_path: KeyPath, stand_in: Callable[[KeyPath], Any], cuts: set[KeyPath]) -> None:
    """Take ``place`` out of ``data``, or the nearest place around it that there is and that can be taken out."""
    if not key_path:
        return
    around = value_at(data, key_path[:-1])
    there = key_path[-1] in (
        around if isinstance(around, dict) else range(len(around) if isinstance(around, list) else 0)
    )
    instead = None if key_path in cuts else stand_in(key_path)
    if instead is not None and (there or isinstance(around, dict)):
        around[key_path[-1]] = instead
    elif there and isinstance(around, dict):
        del around[key_path[-1]]
    else:
        # What is missing, or one of a list whose others keep their numbers: the section around it goes.
        _cut(data, key_path[:-1], stand_in, cuts)
        return
    cuts.add(key_path)


def value_at(data: Any, key_path: KeyPath) -> Any:
    """The value at a key path of plain data; None if there is none."""
    for part in key_path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data
