"""Mistakes inside the section of one tower."""

from __future__ import annotations

from collections.abc import Iterator

from zippkit.errors import some_of
from zippkit.spec import registry
from zippkit.spec.kinds import TowerConfig
from zippkit.spec.tower_spec import TowerSpec
from zippkit.spec.validation import Complaint, validate
from zippkit.spec.words import PART_GROUPS, TAKEN_NAMES
from zippkit.spec.yaml_document import KeyPath


def tower_complaints(tower: TowerSpec) -> Iterator[Complaint]:
    """Yield all mistakes inside a tower's section: its kind, config, weights, frame, freeze rules and parts."""
    config, complaints = tower.resolved
    yield from complaints
    yield from _parts(tower)
    if config is None:
        return
    yield from _frame(tower, config)
    if tower.dtype != "fp32" and not tower.frozen_whole:
        yield (
            ("dtype",),
            f"{tower.dtype} is for a tower that is frozen as a whole: bf16 would round most steps of training away; "
            "freeze it (`lora` adds trained weights in fp32), or leave `dtype` out",
        )
    names = config.parameter_names()
    if names is not None:
        yield from _rules(tower, config, names)


def _frame(tower: TowerSpec, config: TowerConfig) -> Iterator[Complaint]:
    key_path: KeyPath = ("frame",) if tower.frame else ()
    if config.continuous:
        if config.frame is not None:
            yield key_path, f"kind {tower.kind!r} reads no tokens, so it has no begin and end ids; remove `frame`"
    elif config.frame is None:
        yield (), "the model has no begin and end ids of its own; expected `frame: {begin: ..., end: ...}`"
    elif config.vocab_size is not None and max(config.frame.begin, config.frame.end) >= config.vocab_size:
        largest = max(config.frame.begin, config.frame.end)
        yield key_path, f"id {largest} is outside the vocabulary; expected less than {config.vocab_size}"


def _rules(tower: TowerSpec, config: TowerConfig, names: list[str]) -> Iterator[Complaint]:
    try:
        tower.frozen(names)
    except ValueError as error:
        yield ("freeze",), str(error)
        return
    try:
        lora, adapted = tower.adapted(names)
    except ValueError as error:
        yield ("lora",), str(error)
        return
    shapes = config.linear_shapes()
    wrong = [] if shapes is None else [lora.misfit(name, shapes.get(name)) for name in adapted]
    if told := some_of(filter(None, wrong)):
        yield ("lora",), told


def _parts(tower: TowerSpec) -> Iterator[Complaint]:
    for kind, given in tower.parts.items():
        if kind in TAKEN_NAMES | PART_GROUPS:
            yield ("parts", kind), f"{kind!r} means something else in a model; its package must call it otherwise"
            continue
        try:
            yield from validate(registry.config_class(registry.PARTS, kind), given, ("parts", kind))[1]
        except registry.UnknownKindError as error:
            yield ("parts", kind), str(error)
