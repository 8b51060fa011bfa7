"""The encoder families that are known by hand: the names of their parts, and their states at depth 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.families import HOP, N_FFT, SAMPLE_RATE
from zippkit_towers.hf_encoder.inputs import Waveform, Window

Embed = Callable[[nn.Module, HfEncoderConfig, Tensor, Tensor], Tensor]
"""Maps an encoder's modules, its config, (N, ...) inputs and their (N,) lengths to (N, L, D) states at depth 0."""

_WAVEFORM_RANDOMNESS = {
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}


@dataclass(frozen=True)
class Parts:
    """One family, as transformers' own class lays it out."""

    module: str
    """Under ``transformers.models``."""
    cls: str
    embed: Embed
    layers: str
    norm: str | None
    """The module after the last layer, or None."""
    main_input: str
    """The argument of its forward that takes the inputs."""
    quiet: Mapping[str, Any]
    """Settings without randomness: a tower gives the same states for the same inputs, in training too."""
    arguments: Mapping[str, Any]
    unused: tuple[str, ...] = ()
    """Modules that no state depends on."""


def parts_of(config: HfEncoderConfig) -> Parts:
    """The parts of the config's own family."""
    parts = _PARTS[config.model_type]
    return parts if parts.norm != "encoder.layer_norm" or _norm_is_last(config) else replace(parts, norm=None)


@cache
def _mel_filters(n_mels: int) -> Tensor:
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(1 + N_FFT // 2, n_mels, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters).float()


def log_mel(waveforms: Tensor, n_mels: int) -> Tensor:
    """(N, samples) to (N, n_mels, samples / HOP), as Whisper's feature extractor computes it."""
    # Tensors without values (the meta device) know no autocast.
    with torch.autocast("cpu" if waveforms.is_meta else waveforms.device.type, enabled=False):
        window = torch.hann_window(N_FFT, device=waveforms.device)
        spectrum = torch.stft(waveforms.float(), N_FFT, HOP, window=window, return_complex=True)
        power = spectrum[..., :-1].abs().square()
        mel = (_mel_filters(n_mels).to(power.device).T @ power).clamp(min=1e-10).log10()
        return (torch.maximum(mel, mel.amax(dim=(1, 2), keepdim=True) - 8) + 4) / 4


def _until(lengths: Tensor, n: int) -> Tensor:
    """(N, n) bool, True at the first ``lengths`` positions."""
    return torch.arange(n, device=lengths.device) < lengths[:, None]


def _embed_window(encoder: Any, config: HfEncoderConfig, values: Tensor, lengths: Tensor) -> Tensor:
    n_samples = cast("Window", config.inputs).n_samples
    heard = F.pad(values * _until(lengths, values.shape[1]), (0, n_samples - values.shape[1]))
    weight = encoder.conv1.weight
    mel_NFS = log_mel(heard, weight.shape[1]).to(weight.dtype)
    hidden_NDL = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel_NFS))))
    hidden: Tensor = hidden_NDL.transpose(1, 2) + encoder.embed_positions.weight
    return hidden


def _embed_waveforms(encoder: Any, config: HfEncoderConfig, values: Tensor, lengths: Tensor) -> Tensor:
    """Embed each waveform as if it were alone, whatever the lengths of the others."""
    heard = _until(lengths, values.shape[1])
    if config.normalize:
        mean = (values * heard).sum(dim=1, keepdim=True) / lengths[:, None]
        variance = ((values - mean).square() * heard).sum(dim=1, keepdim=True) / lengths[:, None]
        values = (values - mean) / (variance + 1e-7).sqrt()
    inputs = cast("Waveform", config.inputs)
    hidden_NDL = (values * heard)[:, None].to(encoder.feature_projection.projection.weight.dtype)
    n_states = lengths
    for layer, kernel, stride in zip(
        encoder.feature_extractor.conv_layers, inputs.kernels, inputs.strides, strict=True
    ):
        n_states = (n_states - kernel) // stride + 1
        norm = getattr(layer, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            hidden_NDL = layer.activation(_norm_over_time(norm, layer.conv(hidden_NDL), n_states))
        else:
            hidden_NDL = layer(hidden_NDL)
    projected = encoder.feature_projection(hidden_NDL.transpose(1, 2))
    # wav2vec2 gives what it was projected from too.
    hidden: Tensor = projected[0] if isinstance(projected, tuple) else projected
    hidden = hidden * _until(n_states, hidden.shape[1])[:, :, None]
    hidden = hidden + encoder.encoder.pos_conv_embed(hidden)
    return hidden if _norm_is_last(config) else encoder.encoder.layer_norm(hidden)


def _norm_is_last(config: HfEncoderConfig) -> bool:
    """Whether wav2vec2's norm comes after the layers instead of before them."""
    return bool(config.model.get("do_stable_layer_norm", False))


def _norm_over_time(norm: nn.GroupNorm, hidden_NDL: Tensor, lengths: Tensor) -> Tensor:
    """A group norm with a group for each channel, over the true length of each entry."""
    there, n = _until(lengths, hidden_NDL.shape[2])[:, None], lengths[:, None, None]
    mean = (hidden_NDL * there).sum(dim=2, keepdim=True) / n
    variance = ((hidden_NDL - mean).square() * there).sum(dim=2, keepdim=True) / n
    normed = (hidden_NDL - mean) / (variance + norm.eps).sqrt()
    return normed * norm.weight[:, None] + norm.bias[:, None]


def _embed_vit(encoder: Any, config: HfEncoderConfig, values: Tensor, lengths: Tensor) -> Tensor:
    del config, lengths
    hidden: Tensor = encoder.embeddings(values.to(encoder.layernorm.weight.dtype))
    return hidden


def _embed_clip(encoder: Any, config: HfEncoderConfig, values: Tensor, lengths: Tensor) -> Tensor:
    del config, lengths
    # The name is the checkpoints' own.
    hidden: Tensor = encoder.pre_layrnorm(encoder.embeddings(values.to(encoder.pre_layrnorm.weight.dtype)))
    return hidden


def _speech(module: str, cls: str) -> Parts:
    layers, norm = "encoder.layers", "encoder.layer_norm"
    return Parts(module, cls, _embed_waveforms, layers, norm, "input_values", _WAVEFORM_RANDOMNESS, {})


_PARTS: dict[str, Parts] = {
    "whisper": Parts(
        "whisper.modeling_whisper",
        "WhisperEncoder",
        _embed_window,
        "layers",
        "layer_norm",
        "input_features",
        {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "encoder_layerdrop": 0.0},
        {},
    ),
    "wav2vec2": _speech("wav2vec2.modeling_wav2vec2", "Wav2Vec2Model"),
    "hubert": _speech("hubert.modeling_hubert", "HubertModel"),
    "vit": Parts(
        "vit.modeling_vit",
        "ViTModel",
        _embed_vit,
        "layers",
        "layernorm",
        "pixel_values",
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        {"add_pooling_layer": False},
    ),
    "clip_vision_model": Parts(
        "clip.modeling_clip",
        "CLIPVisionModel",
        _embed_clip,
        "encoder.layers",
        None,
        "pixel_values",
        {"attention_dropout": 0.0},
        {},
        unused=("post_layernorm",),
    ),
}
