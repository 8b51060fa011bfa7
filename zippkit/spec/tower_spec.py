"""A tower's section of the spec: its kind and config, its weights, what of it is frozen, and the parts around it."""

from __future__ import annotations

import fnmatch
import os
import typing
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError, field_validator

from zippkit.errors import did_you_mean
from zippkit.spec import registry
from zippkit.spec.kinds import Frame, Strict, TowerConfig
from zippkit.spec.part_sections import InputProjection, Lora, Vocabulary
from zippkit.spec.validation import Complaint, complaints_of, validate
from zippkit.spec.words import PART_GROUPS, TAKEN_NAMES, Action, Name
from zippkit.spec.yaml_document import KeyPath, dotted

PICKLES = frozenset((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"))


class TowerSpec(Strict):
    """One modality's stack of layers."""

    kind: str = Field(description="Registered kind of tower (`zippkit towers` lists them).")
    config: dict[str, Any] = Field(default_factory=dict, description="The kind's own settings.")
    weights: Annotated[Path, Field(strict=False)] | None = Field(
        None, description="A safetensors file or a folder of pre-trained weights; a folder may replace `config`."
    )
    dtype: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="What a frozen tower is held and run in: `bf16`, of half the size, or `auto`, which is bf16 where "
        "all of the weights' file is, else fp32. Links, projections, adapters and the states between layers are fp32.",
    )
    frame: Frame | None = Field(None, description="Begin and end ids; the model's own bos and eos if left out.")
    freeze: bool | dict[str, Action] = Field(
        False,
        description="true, false, or rules `pattern: freeze | train | lora`; every parameter matches exactly one. What "
        "`lora` matches is frozen and gets an adapter.",
    )
    lora: Lora | None = Field(None, description="Adapters on the frozen weights; none if left out.")
    share_with: Name | None = Field(
        None,
        description="Another tower, all of whose weights are this one's too; kind, config, weights, dtype, frame, "
        "freeze and lora are taken from it.",
    )
    input_projection: InputProjection | None = Field(
        None, description="MLP right after the embedding; none if left out."
    )
    extend_vocabulary: dict[Name, Vocabulary] = Field(
        default_factory=dict,
        description="Modalities that this tower reads and writes too, such as `speech: 1026`: so many ids are added "
        "behind its own (the last two are begin and end), with trained rows of their own in embedding and head.",
    )

    parts: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Parts around the tower that other packages bring (entry points of `zippkit.parts`), by their "
        "kind, and their settings, such as `logit_scale: {init: 2.0}`.",
    )

    @field_validator("extend_vocabulary", mode="before", json_schema_input_type=dict[Name, int | Vocabulary])
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        """A plain number is a size."""
        if not isinstance(value, dict):
            return value
        return {name: {"size": given} if type(given) is int else given for name, given in value.items()}

    @field_validator("freeze", mode="plain", json_schema_input_type=bool | dict[str, Action])
    @classmethod
    def _freeze(cls, value: Any) -> bool | dict[str, Action]:
        """One message instead of one for each member of the union."""
        if isinstance(value, bool):
            return value
        if isinstance(value, dict) and value and all(v in typing.get_args(Action) for v in value.values()):
            return cast("dict[str, Action]", value)
        raise ValueError("expected true, false, or a mapping of name patterns to `freeze`, `train` or `lora`")

    @cached_property
    def resolved(self) -> tuple[TowerConfig | None, list[Complaint]]:
        """The tower's own Config, with the spec's frame in place; or what is wrong, placed inside this section."""
        try:
            cls: type[TowerConfig] = registry.config_class(registry.TOWERS, self.kind)
        except registry.UnknownKindError as error:
            return None, [(("kind",), str(error)), *self._weights_complaints(TowerConfig)]
        wrong, data = list(self._weights_complaints(cls)), dict(self.config)
        if wrong and not data:
            return None, wrong  # They were to tell the config.
        if self.weights is not None and not wrong and self.weights.is_dir() and not data:
            try:
                data = cls.told_by(self.weights, self.kind).model_dump(exclude_unset=True)
            except ValidationError as failure:
                found = (
                    ": ".join(filter(None, (dotted(key_path), message)))
                    for key_path, message in complaints_of(cls, failure)
                )
                return None, [(("weights",), f"the config in {str(self.weights)!r}: {problem}") for problem in found]
            except ValueError as error:
                return None, [(("weights",), str(error))]
        if self.frame is not None:
            data["frame"] = self.frame
        config, complaints = validate(cls, data, ("config",))
        return config, wrong + complaints

    def _weights_complaints(self, cls: type[TowerConfig]) -> Iterator[Complaint]:
        # Path.exists raises on a name that is too long for the file system.
        if self.weights is not None and not os.path.exists(self.weights):  # noqa: PTH110
            yield ("weights",), f"{str(self.weights)!r} does not exist; expected a safetensors file or a folder"
        elif self.weights is not None and not self.weights.is_dir() and self.weights.suffix not in cls.weights_suffixes:
            expected = " or ".join((*cls.weights_suffixes, "a folder"))
            why = "; pickled checkpoints can run code and are never opened" if self.weights.suffix in PICKLES else ""
            yield ("weights",), f"{str(self.weights)!r} is no file of weights; expected {expected}{why}"

    @property
    def settings(self) -> TowerConfig:
        """The tower's own Config; only for a spec without problems."""
        config, complaints = self.resolved
        if config is None:
            raise ValueError(str(complaints))
        return config

    def complaints(self) -> Iterator[Complaint]:
        """What is wrong inside this tower: its kind, config, weights, frame, freeze rules and parts."""
        config, complaints = self.resolved
        yield from complaints
        yield from self._part_complaints()
        if config is None:
            return
        key_path: KeyPath = ("frame",) if self.frame else ()
        if config.continuous:
            if config.frame is not None:
                yield key_path, f"kind {self.kind!r} reads no tokens, so it has no begin and end ids; remove `frame`"
        elif config.frame is None:
            yield (), "the model has no begin and end ids of its own; expected `frame: {begin: ..., end: ...}`"
        elif config.vocab_size is not None and max(config.frame.begin, config.frame.end) >= config.vocab_size:
            largest = max(config.frame.begin, config.frame.end)
            yield key_path, f"id {largest} is outside the vocabulary; expected less than {config.vocab_size}"
        if self.dtype != "fp32" and not self.frozen_whole:
            yield (
                ("dtype",),
                f"{self.dtype} is for a tower that is frozen as a whole: bf16 would round most steps of training away; "
                "freeze it (`lora` adds trained weights in fp32), or leave `dtype` out",
            )
        names = config.parameter_names()
        if names is not None:
            try:
                self.frozen(names)
            except ValueError as error:
                yield ("freeze",), str(error)
                return
            try:
                lora, adapted = self.adapted(names)
            except ValueError as error:
                yield ("lora",), str(error)
                return
            shapes = config.linear_shapes()
            wrong = [] if shapes is None else [lora.misfit(name, shapes.get(name)) for name in adapted]
            if told := some_of(filter(None, wrong)):
                yield ("lora",), told

    def _part_complaints(self) -> Iterator[Complaint]:
        for kind, given in self.parts.items():
            if kind in TAKEN_NAMES | PART_GROUPS:
                yield ("parts", kind), f"{kind!r} means something else in a model; its package must call it otherwise"
                continue
            try:
                yield from validate(registry.config_class(registry.PARTS, kind), given, ("parts", kind))[1]
            except registry.UnknownKindError as error:
                yield ("parts", kind), str(error)

    def frozen(self, names: Iterable[str]) -> dict[str, bool]:
        """Whether each parameter is frozen.

        Raises:
            ValueError: a rule matches nothing, or a parameter matches no rule or several; every case is named.
        """
        names = list(names)
        if isinstance(self.freeze, bool):
            return dict.fromkeys(names, self.freeze)
        rules = self.freeze
        matches = {name: [rule for rule in rules if fnmatch.fnmatchcase(name, rule)] for name in names}
        used = {rule for found in matches.values() for rule in found}
        wrong = [f"rule {rule!r} matches no parameter{did_you_mean(rule, names)}" for rule in rules if rule not in used]
        none = [name for name, found in matches.items() if not found]
        if none:
            wrong.append(f"no rule matches {_some(none)}; add a pattern for it")
        wrong += [
            f"{name!r} is matched by {len(m)} rules ({', '.join(m)}); expected one"
            for name, m in matches.items()
            if len(m) > 1
        ][:5]
        if wrong:
            raise ValueError("; ".join(wrong))
        return {name: rules[found[0]] != "train" for name, found in matches.items()}

    @property
    def has_weights(self) -> bool:
        """Whether the spec says where pre-trained weights are; only for a spec without problems."""
        return self.weights is not None or self.settings.weights_path() is not None

    @property
    def freezes(self) -> bool:
        """Whether some parameter is frozen."""
        return self.freeze if isinstance(self.freeze, bool) else set(self.freeze.values()) != {"train"}

    @property
    def frozen_whole(self) -> bool:
        """Whether no parameter is trained; `frozen` must not complain about the names."""
        return self.freeze if isinstance(self.freeze, bool) else "train" not in self.freeze.values()

    @property
    def adapts(self) -> bool:
        """Whether some of its weights get adapters."""
        return self.lora is not None or (isinstance(self.freeze, dict) and "lora" in self.freeze.values())

    def adapted(self, names: Iterable[str]) -> tuple[Lora, list[str]]:
        """The adapters' settings, and the weights that get one; `frozen` must not complain about the names.

        Raises:
            ValueError: nothing says which weights, a pattern matches none, or some are trained themselves.
        """
        frozen, lora = self.frozen(names), self.lora or Lora()
        rules = [] if isinstance(self.freeze, bool) else [r for r, action in self.freeze.items() if action == "lora"]
        patterns = [*rules, *lora.patterns]
        if self.lora is not None and not patterns:
            raise ValueError("expected `pattern`, or `lora` as the action of a rule in `freeze`")
        matches = {pattern: [name for name in frozen if fnmatch.fnmatchcase(name, pattern)] for pattern in patterns}
        named = {name for names in matches.values() for name in names}
        found = [name for name in frozen if name in named]
        wrong = [f"pattern {p!r} matches no parameter{did_you_mean(p, frozen)}" for p in patterns if not matches[p]]
        trained = [name for name in found if not frozen[name]]
        if trained:
            wrong.append(f"{_some(trained)} is trained itself; freeze what adapters are for")
        if wrong:
            raise ValueError("; ".join(wrong))
        return lora, found


def some_of(messages: Iterable[str]) -> str:
    """The first five of several messages, in one line."""
    listed = list(messages)
    return "; ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
