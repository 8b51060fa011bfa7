"""Settings of a Hugging Face encoder, read from its own config.json; without torch and transformers."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zippkit.spec.kinds import Image, Sound, TowerConfig, read_json
from zippkit_towers.hf_encoder.families import FAMILIES, SAMPLE_RATE, Family, check_values, encoder_part, number
from zippkit_towers.hf_encoder.inputs import Inputs, Pixels
from zippkit_towers.hf_folder import WEIGHTS, local_folder


class HfEncoderConfig(TowerConfig):
    """An encoder of sound or of images; give ``path`` or ``model``, and the rest follows."""

    implementation: ClassVar[str] = "zippkit_towers.hf_encoder.tower:HfEncoder"
    causal: ClassVar[bool] = False
    continuous: ClassVar[bool] = True

    path: str | None = Field(
        None,
        description="A local folder or a hub id, of which config and weights are; only weights if `model` is given.",
    )
    model: dict[str, Any] = Field(
        description="A Hugging Face config as plain data, `model_type` among it; that of `path` if left out."
    )
    sample_rate: int | None = Field(None, gt=0, description="Samples a second of its waveforms; none for images.")
    normalize: bool = Field(
        False, description="Bring each waveform to zero mean and unit variance first (wav2vec2, HuBERT)."
    )

    @model_validator(mode="before")
    @classmethod
    def _follows(cls, given: Any) -> Any:
        """Everything that the Hugging Face config tells."""
        if not isinstance(given, dict):
            return given
        path, model = given.get("path"), given.get("model")
        if model is None:
            if not isinstance(path, str):
                raise ValueError("expected `path: FOLDER_OR_HUB_ID` or `model: {model_type: ...}`")
            told = _read(local_folder(path))
        elif isinstance(model, dict):
            told = _told(model, "model", {})
        else:
            raise ValueError(f"model: expected a mapping, got {model!r}")
        return told | {key: value for key, value in given.items() if value is not None and key != "model"}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        told = _told(self.model, "model", {})
        for key in ("dim", "n_layers"):
            if getattr(self, key) != told[key]:
                raise ValueError(f"{key} is {getattr(self, key)}, but the model's is {told[key]}; leave it out")
        if self.vocab_size is not None:
            raise ValueError("vocab_size: an encoder of waveforms or pixels has no vocabulary")
        if self.sample_rate is not None and not self.family.audio:
            raise ValueError(f"sample_rate: a {self.model_type!r} model is fed pixels")
        if self.normalize and not self.family.normalizes:
            raise ValueError(f"normalize: a {self.model_type!r} model takes its inputs as they are")
        if self.model_type == "whisper" and self.sample_rate != SAMPLE_RATE:
            raise ValueError(f"sample_rate is {self.sample_rate}; a 'whisper' model hears only {SAMPLE_RATE}")
        return self

    @property
    def model_type(self) -> str:
        return str(self.model["model_type"])

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @cached_property
    def inputs(self) -> Inputs:
        """The shape of one segment's inputs."""
        return self.family.inputs({**self.family.defaults, **self.model})

    @property
    def feed(self) -> Sound | Image | None:
        if isinstance(self.inputs, Pixels):
            return Image(*self.inputs.shape)
        return None if self.sample_rate is None else Sound(self.sample_rate)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        return cls.model_validate(_read(folder)) if (folder / "config.json").exists() else super().from_folder(folder)

    def weights_path(self) -> Path | None:
        """The folder of the pre-trained weights, if the config names one."""
        return None if self.path is None else local_folder(self.path, WEIGHTS)

    def n_states(self, values: NDArray[np.float32]) -> int:
        return self.inputs.n_states(values)

    def example_inputs(self, size: int, seed: int) -> NDArray[np.float32]:
        return self.inputs.example(size, seed)


def _told(raw: dict[str, Any], where: str, extractor: dict[str, Any]) -> dict[str, Any]:
    """The fields that a Hugging Face config, and its feature extractor's, tell.

    Raises:
        ValueError: a family or a setting that is not run, or a shape that is none.
    """
    model = encoder_part(raw, where)
    family = FAMILIES[model["model_type"]]
    check_values(extractor, family.extractor, f"{where}'s feature extractor")
    known = {**family.defaults, **model}
    family.inputs(known)
    told = {"model": model, "dim": number(known, family.dim), "n_layers": number(known, family.n_layers)}
    if family.audio:
        told["sample_rate"] = extractor.get("sampling_rate", SAMPLE_RATE)
    if family.normalizes:
        told["normalize"] = extractor.get("do_normalize", True)
    return told


def _read(folder: Path) -> dict[str, Any]:
    extractor: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").exists():
        extractor = read_json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").exists():
        nested = read_json(folder / "processor_config.json").get("feature_extractor")
        extractor = nested if isinstance(nested, dict) else {}
    return _told(read_json(folder / "config.json"), str(folder), extractor)
