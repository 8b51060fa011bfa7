"""Settings of a Hugging Face encoder, read from its own config.json; without torch.

Transformers is imported only where the config leaves out what it would tell.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from zippkit.spec.hf_folder import WEIGHTS, local_folder
from zippkit.spec.kinds import Frame, Image, Sound, TowerConfig, read_json
from zippkit.spec.registry import TOWERS, implementation
from zippkit_towers.hf_encoder.families import (
    FAMILIES,
    SAMPLE_RATE,
    Family,
    check_values,
    encoder_part,
    family_of,
    number,
)
from zippkit_towers.hf_encoder.guessed_shape import EXACT, Feed, max_len_of
from zippkit_towers.hf_encoder.inputs import Inputs, Pixels


class HfEncoderConfig(TowerConfig):
    """An encoder of sound, of images or of text; give ``path`` or ``model``, and the rest follows."""

    implementation: ClassVar[str] = "zippkit_towers.hf_encoder.tower:HfEncoder"
    causal: ClassVar[bool] = False

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
        """Fill in everything that the Hugging Face config tells."""
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
        if self.vocab_size != told.get("vocab_size"):
            if self.continuous:
                raise ValueError("vocab_size: an encoder of waveforms or pixels has no vocabulary")
            raise ValueError(f"vocab_size is {self.vocab_size}, but the model's is {told['vocab_size']}; leave it out")
        if self.sample_rate is not None and self.feed_kind != "sound":
            fed = {"image": "pixels", "text": "token ids"}[self.feed_kind]
            raise ValueError(f"sample_rate: a {self.model_type!r} model is fed {fed}")
        if self.normalize and not self.family.normalizes:
            raise ValueError(f"normalize: a {self.model_type!r} model takes its inputs as they are")
        if self.model_type == "whisper" and self.sample_rate != SAMPLE_RATE:
            raise ValueError(f"sample_rate is {self.sample_rate}; a 'whisper' model hears only {SAMPLE_RATE}")
        return self

    @property
    def model_type(self) -> str:
        """Name of the family in transformers."""
        return str(self.model["model_type"])

    @cached_property
    def family(self) -> Family:
        """The family: known by hand, or described by this config."""
        return family_of(self.model)

    @property
    def feed_kind(self) -> Feed:
        """The kind of inputs: sound, image or text."""
        return self.family.feed

    @property
    def continuous(self) -> bool:
        """Whether it is fed waveforms or pixels instead of token ids."""
        return self.feed_kind != "text"

    @property
    def predicts(self) -> bool:
        """False: an encoder has no head."""
        return False

    @property
    def padding(self) -> int:
        """Token id of padding; nothing attends to it."""
        given = self.model.get("pad_token_id")
        return given if type(given) is int and 0 <= given < (self.vocab_size or 0) else 0

    @cached_property
    def inputs(self) -> Inputs:
        """The shape of one segment's inputs, of an encoder that is not fed token ids."""
        made = _inputs(self.family, self.model)
        if made is None:
            raise ValueError(f"a {self.model_type!r} model is fed token ids")
        return made

    @property
    def feed(self) -> Sound | Image | None:
        """Sample rate of its waveforms, or shape of its images; None for token ids, or where the rate is unknown."""
        if self.feed_kind == "text":
            return None
        if isinstance(self.inputs, Pixels):
            return Image(*self.inputs.shape)
        return None if self.sample_rate is None else Sound(self.sample_rate)

    @classmethod
    def runs(cls, model_type: str) -> bool:
        """Whether the family is known by hand, or found to be exact."""
        return model_type in FAMILIES or model_type in EXACT

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Config of the Hugging Face model, or zippkit's own tower, in ``folder``.

        Raises:
            ValueError: the folder does not tell, or holds a model that is not run.
        """
        return cls.model_validate(_read(folder)) if (folder / "config.json").exists() else super().from_folder(folder)

    @property
    def names_weights(self) -> bool:
        return self.path is not None

    def weights_path(self) -> Path | None:
        """The folder of the pre-trained weights, if the config names one."""
        return None if self.path is None else local_folder(self.path, WEIGHTS)

    def n_states(self, values: NDArray[np.float32]) -> int:
        """Number of states of one segment's inputs.

        Raises:
            ValueError: inputs of another shape, not finite, too short or too long.
        """
        n = self.inputs.n_states(values)
        if self.family.known or self.feed_kind != "image":
            return n
        # Families differ in their states beside the patches, and the tower, which needs torch, can count them.
        count: int = implementation(TOWERS, "hf_encoder").n_image_states(self)
        return count

    def example_inputs(self, size: int, seed: int) -> NDArray[np.float32]:
        """Random inputs of about ``size`` states, where their number can vary."""
        return self.inputs.example(size, seed)


def _inputs(family: Family, model: dict[str, Any]) -> Inputs | None:
    if family.inputs is None:
        return None
    return family.inputs({**family.defaults, **model} if family.known else family.defaults)


def _told(raw: dict[str, Any], where: str, extractor: dict[str, Any]) -> dict[str, Any]:
    """The fields of this kind's config, from a Hugging Face config and its feature extractor's.

    Raises:
        ValueError: a family or a setting that is not run, or a shape that is none.
    """
    model = encoder_part(raw, where)
    family = family_of(model)
    check_values(extractor, family.extractor, f"{where}'s feature extractor")
    known = {**family.defaults, **model} if family.known else family.defaults
    _inputs(family, model)
    told = {"model": model, "dim": number(known, family.dim), "n_layers": number(known, family.n_layers)}
    if family.feed == "sound":
        told["sample_rate"] = extractor.get("sampling_rate", SAMPLE_RATE)
    if family.normalizes:
        told["normalize"] = extractor.get("do_normalize", True)
    if family.feed == "text":
        told |= {"vocab_size": number(known, "vocab_size"), "max_len": max_len_of(model), "frame": _frame(model)}
    return {key: value for key, value in told.items() if value is not None}


def _frame(model: dict[str, Any]) -> Frame | None:
    """Begin and end ids of the config: its bos and eos, or BERT's cls and sep."""
    for names in (("bos_token_id", "eos_token_id"), ("cls_token_id", "sep_token_id")):
        begin, end = (model.get(name) for name in names)
        if type(begin) is int and type(end) is int and begin >= 0 and end >= 0:
            return Frame(begin=begin, end=end)
    return None


_BEGIN_AND_END = (("[CLS]", "[SEP]"), ("<s>", "</s>"), ("<cls>", "<eos>"), ("<pad>", "</s>"))
"""Tokens that encoders' tokenizers put around a text. T5's puts none in front; its decoder begins with padding."""


def _frame_beside(folder: Path) -> Frame | None:
    """Begin and end ids of the folder's tokenizer."""
    file = folder / "tokenizer.json"
    added = read_json(file).get("added_tokens") if file.is_file() else None
    found = [each for each in (added if isinstance(added, list) else ()) if isinstance(each, dict)]
    ids: dict[Any, int] = {each.get("content"): each["id"] for each in found if type(each.get("id")) is int}
    pairs = ((ids.get(begin), ids.get(end)) for begin, end in _BEGIN_AND_END)
    return next((Frame(begin=b, end=e) for b, e in pairs if b is not None and e is not None), None)


def _read(folder: Path) -> dict[str, Any]:
    extractor: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").exists():
        extractor = read_json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").exists():
        nested = read_json(folder / "processor_config.json").get("feature_extractor")
        extractor = nested if isinstance(nested, dict) else {}
    told = _told(read_json(folder / "config.json"), str(folder), extractor)
    if "vocab_size" in told and "frame" not in told and (frame := _frame_beside(folder)) is not None:
        told["frame"] = frame
    return told
