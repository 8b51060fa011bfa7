"""Settings of a Hugging Face decoder, read from its own config.json; without torch and transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from zippkit.errors import did_you_mean
from zippkit.spec.hf_folder import WEIGHTS, local_folder
from zippkit.spec.kinds import Frame, TowerConfig, read_json
from zippkit_towers.hf_causal_lm.families import KNOWN, decoders, known_to_transformers

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "proportional")
"""Rotary embeddings whose angles depend on a token's position alone, not on the longest one that has been seen."""


DIMS = ("hidden_size", "n_embd", "d_model", "dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
"""Keys for the width, the number of layers and the longest sequence; the first that is there counts."""
REFUSED: dict[str, tuple[Any, ...]] = {
    "use_bidirectional_attention": (True, "all"),
    "add_cross_attention": (True,),
    "is_encoder_decoder": (True,),
}
"""Settings of models that are no decoders."""
_DESCRIBES_NOTHING = ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "auto_map")


class HfCausalLmConfig(TowerConfig):
    """A decoder of Hugging Face transformers; give ``path`` or ``model``, and the rest follows."""

    implementation: ClassVar[str] = "zippkit_towers.hf_causal_lm.tower:HfCausalLm"

    path: str | None = Field(
        None,
        exclude=True,
        description="A local folder or a hub id, of which config and weights are; only weights if `model` is given.",
    )
    model: dict[str, Any] = Field(
        description="A Hugging Face config as plain data, `model_type` among it; that of `path` if left out."
    )

    @model_validator(mode="before")
    @classmethod
    def _follows(cls, given: Any) -> Any:
        """Fill in everything that the Hugging Face config tells."""
        if not isinstance(given, dict):
            return given
        path, model = given.get("path"), given.get("model")
        if isinstance(model, dict):
            told = _told(model, "model")
        elif model is not None:
            raise ValueError(f"model: expected a mapping, got {model!r}")
        elif isinstance(path, str):
            folder = local_folder(path)
            told = _told(read_json(folder / "config.json"), str(folder))
        else:
            raise ValueError("expected `path: FOLDER_OR_HUB_ID` or `model: {model_type: ...}`")
        return told | {key: value for key, value in given.items() if value is not None and key != "model"}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        told = _told(self.model, "model")
        for key in ("dim", "n_layers", "vocab_size"):
            if getattr(self, key) != told[key]:
                raise ValueError(f"{key} is {getattr(self, key)}, but the model's is {told[key]}; leave it out")
        return self

    @property
    def model_type(self) -> str:
        """Name of the family in transformers."""
        return str(self.model["model_type"])

    @classmethod
    def runs(cls, model_type: str) -> bool:
        """Whether transformers has a decoder of this name."""
        return model_type in decoders()

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Config of the Hugging Face model, or zippkit's own tower, in ``folder``.

        Raises:
            ValueError: the folder does not tell, or holds a model that is not run.
        """
        if not (folder / "config.json").exists():
            return super().from_folder(folder)
        return cls.model_validate(_told(read_json(folder / "config.json"), str(folder)))

    @property
    def names_weights(self) -> bool:
        return self.path is not None

    def weights_path(self) -> Path | None:
        """The folder of the pre-trained weights, if the config names one."""
        return None if self.path is None else local_folder(self.path, WEIGHTS)


def _told(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of this kind's config, from a Hugging Face config.

    Raises:
        ValueError: a family or a setting that is not run, or a size that is missing or not positive.
    """
    model = dict(raw)
    if model.get("model_type") == "gemma3" and isinstance(model.get("text_config"), dict):
        model = {**model["text_config"], "model_type": "gemma3_text"}
    name = model.get("model_type")
    known = known_to_transformers()
    if not isinstance(name, str) or (known and name not in known):
        near = did_you_mean(str(name), known or KNOWN)
        raise ValueError(f"{where} holds a {name!r} model, which transformers knows no decoder of{near}")
    for key, values in REFUSED.items():
        if model.get(key) in values:
            raise ValueError(f"{where}: {key} is {model[key]!r}, which kind `hf_causal_lm` does not run")
    if model.get("quantization_config"):
        raise ValueError(
            f"{where}: quantization_config is set, and kind `hf_causal_lm` runs no quantised weights; expected "
            "a folder of plain ones"
        )
    _check_rope(model, where)
    sizes = {key: _number(model, names, where) for key, names in (("dim", DIMS), ("n_layers", LAYERS))}
    told: dict[str, Any] = {
        # An explicit null says something else than a missing key, for which transformers has its own default.
        "model": {key: value for key, value in model.items() if key not in _DESCRIBES_NOTHING},
        "vocab_size": _number(model, ("vocab_size",), where),
        **sizes,
    }
    longest = next((model[key] for key in LENGTHS if type(model.get(key)) is int), None)
    if longest is not None:
        told["max_len"] = longest
    begin, end = (_first(model.get(key)) for key in ("bos_token_id", "eos_token_id"))
    if begin is not None and end is not None:
        told["frame"] = Frame(begin=begin, end=end)
    return told


def _check_rope(model: Mapping[str, Any], where: str) -> None:
    """Refuse rotary embeddings that change with the longest position: cached decoding would not be the full forward."""
    for key in ("rope_parameters", "rope_scaling"):
        given = model.get(key)
        if not isinstance(given, dict):
            continue
        # Gemma 3 has one set for each type of layer.
        sets = [value for value in given.values() if isinstance(value, dict)] or [given]
        for each in sets:
            rope = each.get("rope_type", each.get("type", "default"))
            if rope not in ROPE_TYPES:
                raise ValueError(
                    f"{where}: rope_type is {rope!r}, whose angles depend on the longest position; kind `hf_causal_lm` "
                    f"runs {', '.join(ROPE_TYPES)}"
                )


def _number(model: Mapping[str, Any], names: Sequence[str], where: str) -> int:
    """The first setting with one of these names."""
    key = next((name for name in names if model.get(name) is not None), names[0])
    value = model.get(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"{where}: {key} is {value!r}; expected a whole number above 0")
    return value


def _first(ids: Any) -> int | None:
    """A token id; the first of several."""
    ids = ids[0] if isinstance(ids, list) and ids else ids
    return ids if type(ids) is int and ids >= 0 else None
