"""What an exported model builds an encoder from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.guessed_inputs import MAIN_INPUT
from zippkit_towers.hf_encoder.inputs import Window
from zippkit_towers.hf_encoder.parts import parts_of
from zippkit_towers.hf_encoder.transformers_model import encoder_of, whole_encoder, whole_model


def exported_settings(config: HfEncoderConfig) -> dict[str, Any]:
    """The settings of the part `zippkit.training.hf_parts.hf_encoder`."""
    known = config.family.known
    window = config.inputs if config.continuous and isinstance(config.inputs, Window) else None
    parts = parts_of(config) if known else None
    return {
        "model": {**config.model, **(parts.quiet if parts else {})},
        "module": parts and parts.module,
        "class": parts and parts.cls,
        "arguments": dict(parts.arguments) if parts else {},
        "unused": list(parts.unused) if parts else [],
        "argument": parts.main_input if parts else MAIN_INPUT[config.feed_kind],
        "n_layers": config.n_layers,
        "feed": "window" if window else config.feed_kind,
        "normalize": config.feed_kind == "sound" and window is None and bool(config.normalize),
        "n_samples": window and window.n_samples,
        "n_mels": window and config.model.get("num_mel_bins", config.family.defaults["num_mel_bins"]),
    }


def zeros_for(config: HfEncoderConfig, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for what transformers' own encoder has besides a tower's tensors: no state depends on it."""
    with torch.device("meta"):
        by_hand = config.family.known
        encoder: nn.Module = whole_encoder(config) if by_hand else encoder_of(whole_model(config, quiet=True))
    unused = tuple(f"{name}." for name in parts_of(config).unused) if by_hand else ()
    own = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith(unused)}
    return {name: torch.zeros(each.shape, dtype=each.dtype) for name, each in own.items() if name not in known}
