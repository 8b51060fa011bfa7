"""Builds transformers' own model of an encoder, with or without what is random in it."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import torch
from torch import nn

from zippkit.errors import ZippkitError
from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.guessed_shape import one_line
from zippkit_towers.hf_encoder.parts import parts_of


def whole_encoder(config: HfEncoderConfig) -> nn.Module:
    """Build the encoder of a family that is known by hand, with everything random switched off.

    Raises:
        ZippkitError: transformers is not installed, or does not take the config.
    """
    parts = parts_of(config)
    try:
        transformers: Any = import_module("transformers")
        module: Any = import_module(f"transformers.models.{parts.module}")
    except ImportError as error:
        raise ZippkitError("kind `hf_encoder` needs transformers: pip install 'zippkit[hf]'") from error
    try:
        settings = transformers.AutoConfig.for_model(**{**config.model, **parts.quiet}, attn_implementation="sdpa")
        return cast("nn.Module", getattr(module, parts.cls)(settings, **parts.arguments))
    except Exception as error:
        # transformers checks its settings in its own ways.
        raise ZippkitError(
            f"transformers builds no {config.model_type!r} model of this config: {one_line(error)}"
        ) from error


def whole_model(config: HfEncoderConfig, quiet: bool) -> Any:
    """Build transformers' own model of a config; ``quiet`` switches everything random off.

    Raises:
        ZippkitError: transformers is not installed, or does not take the config.
    """
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise ZippkitError("kind `hf_encoder` needs transformers: pip install 'zippkit[hf]'") from error
    try:
        settings = transformers.AutoConfig.for_model(**config.model)
        if quiet:
            _silence(settings)
        model = transformers.AutoModel.from_config(settings, dtype=torch.get_default_dtype(), trust_remote_code=False)
    except Exception as error:
        # transformers checks its settings in its own ways.
        what = f"transformers builds no {config.model_type!r} model of this config"
        raise ZippkitError(f"{what}: {one_line(error)}") from error
    if quiet:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return model.eval()


def _silence(settings: Any) -> None:
    """Switch off what is random in training; the parity check finds what this misses."""
    for key, value in list(vars(settings).items()):
        if key == "use_cache":
            setattr(settings, key, False)
        elif type(value) is float and any(word in key for word in ("drop", "mask_time_prob", "mask_feature_prob")):
            setattr(settings, key, 0.0)
        elif key == "apply_spec_augment":
            setattr(settings, key, False)


def encoder_of(whole: Any) -> Any:
    """The encoder of a model with a decoder behind it; otherwise the model itself."""
    return whole.get_encoder() if getattr(whole.config, "is_encoder_decoder", False) else whole
