"""Builds and reads transformers' own model of a decoder: its config, its modules, the weights of a folder."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from zippkit.errors import CheckpointError, ZippkitError
from zippkit.model.weights import read_tensors
from zippkit.system.progress import without_bars_of_transformers
from zippkit_towers.hf_causal_lm.config import HfCausalLmConfig

_RANDOM = ("dropout", "pdrop", "jitter")
"""In the names of settings that make training random; a tower returns the same for the same inputs."""


def whole_model(config: HfCausalLmConfig, hf: Any = None) -> Any:
    """Build transformers' own model, randomly initialised.

    Args:
        config: of the tower.
        hf: transformers' config, if it differs from what `hf_config` makes of ``config``.

    Raises:
        ZippkitError: transformers cannot build it.
    """
    auto = _transformers().AutoModelForCausalLM
    with _told_as_one(config):
        return auto.from_config(
            hf_config(config) if hf is None else hf,
            dtype=torch.get_default_dtype(),
            attn_implementation=_attention(config),
            trust_remote_code=False,
        )


def hf_config(config: HfCausalLmConfig) -> Any:
    """Transformers' config, with everything random switched off.

    Raises:
        ZippkitError: transformers does not take the settings.
    """
    with _told_as_one(config):
        hf = _for_model(config)
    for key in _random(hf):
        setattr(hf, key, 0.0)
    return hf


def quiet_settings(config: HfCausalLmConfig) -> dict[str, Any]:
    """Settings of which transformers makes what `hf_config` gives."""
    with _told_as_one(config):
        return {**config.model, **dict.fromkeys(_random(_for_model(config)), 0.0)}


def _random(hf: Any) -> list[str]:
    """The settings that make training random."""
    plain = {key: value for key, value in vars(hf).items() if value is None or type(value) in (int, float)}
    return [key for key in plain if any(part in key for part in _RANDOM)]


def own_config(config: HfCausalLmConfig, folder: Path | None) -> Any:
    """Transformers' config as it stands in the folder of the weights, untouched; without a folder, in ``config``."""
    # With a `model` of its own, a spec takes only the weights of a folder.
    if folder is not None and HfCausalLmConfig.from_folder(folder).model == config.model:
        read = _transformers().AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return read.get_text_config()
    return _for_model(config)


def read_folder(path: Path, config: HfCausalLmConfig, dtype: torch.dtype) -> Any:
    """Read a Hugging Face folder into transformers' own model, by its own rules for older names of tensors.

    Raises:
        CheckpointError: weights that do not fit, or no safetensors.
    """
    transformers = _transformers()
    try:
        with without_bars_of_transformers():
            model, told = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                config=hf_config(config),
                attn_implementation=_attention(config),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=dtype,
                output_loading_info=True,
            )
    except Exception as error:
        # Transformers raises whatever its readers raise.
        read_tensors(path)
        raise CheckpointError(f"{path}: transformers cannot load it: {type(error).__name__}: {error}") from error
    wrong = {key: sorted(map(str, told.get(key, ()))) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    problems = [f"{key.replace('_', ' ')}: {', '.join(names[:5])}" for key, names in wrong.items() if names]
    if problems:
        raise CheckpointError(f"{path}: does not fit its own config.json: {'; '.join(problems)}")
    return model


def architecture(model_type: str) -> str:
    """Name of transformers' causal language model of a family."""
    names = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return str(names[model_type])


def _transformers() -> Any:
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ZippkitError("kind `hf_causal_lm` needs transformers: pip install 'zippkit[hf]'") from error


def _attention(config: HfCausalLmConfig) -> str | None:
    """Eager attention where scores are capped; None leaves the choice to transformers."""
    return "eager" if config.model.get("attn_logit_softcapping") else None


@contextmanager
def _told_as_one(config: HfCausalLmConfig) -> Iterator[None]:
    """Turn whatever transformers raises about a config into one sentence: it checks few settings, each in its own way.

    Raises:
        ZippkitError: names the model type and the error.
    """
    try:
        yield
    except ZippkitError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        # A value that is not known, as of `hidden_act`, comes without its name.
        unknown = error.args[:1] if isinstance(error, KeyError) else ()
        named = "".join(f"; {key} is {value!r}" for key, value in config.model.items() if value in unknown)
        raise ZippkitError(
            f"transformers cannot build a {config.model_type!r} model of these settings ({why}{named}); correct them "
            "in its config.json, or in `model`"
        ) from error


def _for_model(config: HfCausalLmConfig) -> Any:
    # A copy, because transformers fills in what is left out inside the nested settings that it is given.
    return _transformers().AutoConfig.for_model(**copy.deepcopy(config.model))
