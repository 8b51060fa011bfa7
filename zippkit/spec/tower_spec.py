"""A tower's section of the spec: its kind and config, its weights, what of it is frozen, and the parts around it."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError, field_validator

from zippkit.spec import registry
from zippkit.spec.freeze_rules import adapted_by, frozen_by
from zippkit.spec.kinds import Frame, Strict, TowerConfig
from zippkit.spec.part_sections import InputProjection, Lora, Vocabulary
from zippkit.spec.validation import Complaint, complaints_of, validate
from zippkit.spec.weights_file import weights_complaints
from zippkit.spec.words import Action, Name, Place
from zippkit.spec.yaml_document import dotted


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

    place: Place | None = Field(
        None,
        description="Where its weights are if several ranks train: `replicate`, whole on each, as suits small towers; "
        "`per_layer` or `root`, in parts that are brought together layer by layer or all at once. As the recipe's "
        "`parallel` says if left out.",
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
            return None, [(("kind",), str(error)), *weights_complaints(self.weights, TowerConfig)]
        wrong, data = list(weights_complaints(self.weights, cls)), dict(self.config)
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

    @property
    def settings(self) -> TowerConfig:
        """The tower's own Config; only for a spec without problems."""
        config, complaints = self.resolved
        if config is None:
            raise ValueError(str(complaints))
        return config

    @property
    def has_weights(self) -> bool:
        """Whether the spec names pre-trained weights, fetched or not; only for a spec without problems."""
        return self.weights is not None or self.settings.names_weights

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

    def frozen(self, names: Iterable[str]) -> dict[str, bool]:
        """Whether each parameter is frozen; see `frozen_by`."""
        return frozen_by(self.freeze, names)

    def adapted(self, names: Iterable[str]) -> tuple[Lora, list[str]]:
        """The adapters' settings, and the weights that get one; see `adapted_by`."""
        return self.lora or Lora(), adapted_by(self.freeze, self.lora, names)
