"""Tiny speech models of transformers with random weights, in folders as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

_SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
_WAVES = _SIZE | {
    "conv_dim": [8, 8],
    "conv_kernel": [20, 16],
    "conv_stride": [20, 16],
    "num_conv_pos_embeddings": 5,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 9,
}
_BERT = _SIZE | {"feature_projection_input_dim": 160, "output_hidden_size": 16, "conv_depthwise_kernel_size": 3}
_CODEC: dict[str, Any] = {"sampling_rate": 8000, "num_filters": 4, "codebook_size": 16, "codebook_dim": 8}
_MIMI = (
    _SIZE
    | _CODEC
    | {
        "upsampling_ratios": [5, 4],
        "head_dim": 8,
        "num_key_value_heads": 2,
        "num_quantizers": 4,
        "vector_quantization_hidden_dimension": 8,
        "upsample_groups": 16,
        "frame_rate": 200.0,
        "max_position_embeddings": 500,
    }
)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("HubertForCTC", _WAVES),
    "wav2vec2": ("Wav2Vec2Model", _WAVES),
    "wav2vec2-bert": ("Wav2Vec2BertModel", _BERT),
    "encodec": (
        "EncodecModel",
        _CODEC | {"hidden_size": 8, "upsampling_ratios": [8, 5], "num_lstm_layers": 1, "target_bandwidths": [0.8, 3.2]},
    ),
    "mimi": ("MimiModel", _MIMI),
}
"""Model type to the class that is saved and its config; a model for recognition among them, as HuBERT often comes."""


def saved(name: str, folder: Path) -> Path:
    cls, settings = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, cls)(transformers.AutoConfig.for_model(name, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            # A codec's codebooks are buffers, all zero before training.
            if "embed" in key and buffer.is_floating_point():
                buffer.copy_(torch.randn_like(buffer))
            if "cluster_usage" in key:
                buffer.fill_(1)
    model.save_pretrained(folder)
    return folder
