"""Tiny encoders of every family: inside whole models of transformers, in folders, and what they themselves compute."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from zippkit.batch.batch import Segment, TowerBatch
from zippkit.batch.collate import collate
from zippkit_towers.hf_encoder.config import HfEncoderConfig

_SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
_CONVOLUTIONS = {"conv_dim": [8, 12], "conv_kernel": [5, 3], "conv_stride": [3, 2]}
_WAVES = _SIZE | _CONVOLUTIONS | {"num_conv_pos_embeddings": 5, "num_conv_pos_embedding_groups": 2, "vocab_size": 9}
_STABLE = _WAVES | {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "num_conv_pos_embeddings": 4}
_PIXELS = _SIZE | {"image_size": 8, "patch_size": 4}
_TOKENS = {"vocab_size": 9, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WHISPER = {"d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 12}
_DECODER = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "decoder_start_token_id": 1}
MODELS: dict[str, dict[str, Any]] = {
    "whisper": {"model_type": "whisper", "max_source_positions": 10, "dropout": 0.1, "encoder_layerdrop": 0.5}
    | {"begin_suppress_tokens": None, "max_target_positions": 8}
    | _WHISPER
    | _DECODER
    | _TOKENS,
    "wav2vec2": {"model_type": "wav2vec2"} | _WAVES,
    "wav2vec2, stable": {"model_type": "wav2vec2"} | _STABLE,
    "hubert": {"model_type": "hubert"} | _WAVES,
    "hubert, stable": {"model_type": "hubert", "feat_proj_layer_norm": False} | _STABLE,
    "vit": {"model_type": "vit", "num_channels": 1, "hidden_dropout_prob": 0.1} | _PIXELS,
    "clip": {"model_type": "clip", "vision_config": _PIXELS, "text_config": _SIZE | _TOKENS},
}
"""Tiny ones; dropout, dropped layers and masked inputs as transformers has them by default, or worse."""
WHOLE = {
    "whisper": "WhisperForConditionalGeneration",
    "wav2vec2": "Wav2Vec2ForCTC",
    "hubert": "HubertForCTC",
    "vit": "ViTForImageClassification",
    "clip": "CLIPModel",
}


def config(name: str, **more: Any) -> HfEncoderConfig:
    return HfEncoderConfig(**{"model": MODELS[name], **more})


@cache
def whole(name: str) -> Any:
    """The whole model, every parameter random, as transformers builds it."""
    model = getattr(transformers, WHOLE[name.partition(",")[0]])
    torch.manual_seed(0)
    built = model(transformers.AutoConfig.for_model(**MODELS[name])).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built


def inner(name: str) -> Any:
    """The encoder inside the whole model."""
    model, family = whole(name), name.partition(",")[0]
    places = {"whisper": "model.encoder", "clip": "vision_model"}
    return model.get_submodule(places.get(family, family))


@cache
def saved(name: str, root: Path) -> Path:
    """The whole model in a folder, as `save_pretrained` writes it."""
    folder = root / name.replace(", ", "_")
    whole(name).save_pretrained(folder)
    return folder


def extracted(name: str, values: NDArray[np.float32]) -> dict[str, Tensor]:
    """What transformers' own feature extractor makes of one segment."""
    if name == "whisper":
        extract = transformers.WhisperFeatureExtractor(feature_size=12)
        features = extract(values, sampling_rate=16_000, max_length=3200, return_tensors="pt")
        return {"input_features": features["input_features"]}
    if name in ("vit", "clip"):
        return {"pixel_values": torch.from_numpy(values)[None]}
    wave = transformers.Wav2Vec2FeatureExtractor()(values, sampling_rate=16_000, return_tensors="pt")
    return {"input_values": wave["input_values"]}


@torch.no_grad()
def alone(name: str, values: NDArray[np.float32]) -> list[Tensor]:
    """States (L, D) of one segment at every depth but the last, and ``last_hidden_state``."""
    found = inner(name)(**extracted(name, values), output_hidden_states=True)
    return [states[0] for states in found.hidden_states[:3]] + [found.last_hidden_state[0]]


def packed(config: HfEncoderConfig, *rows: list[NDArray[np.float32]]) -> TowerBatch:
    segments = [[Segment("it", values) for values in row] for row in rows]
    return collate(segments, {"it": config}, multiple=4).towers["it"]


_TEXT = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BERT = _SIZE | _TEXT | {"num_hidden_layers": 2, "max_position_embeddings": 32, "hidden_dropout_prob": 0.1}
TEXT: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert"} | _BERT,
    "roberta": {"model_type": "roberta"} | _BERT | {"pad_token_id": 1, "bos_token_id": 0},
    "modernbert": {"model_type": "modernbert", "local_attention": 8, "global_attn_every_n_layers": 2} | _BERT,
    "t5": {"model_type": "t5", "d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 24} | _TEXT,
}
"""Tiny encoders of text; neighbours that a layer sees only in part, and biases of relative positions, among them."""


def text_config(name: str) -> HfEncoderConfig:
    return HfEncoderConfig(model=TEXT[name])
