"""Picks an encoder's tensors from a Hugging Face checkpoint, and renames them to its own names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Names:
    """Names of tensors in one family's checkpoints."""

    prefixes: tuple[str, ...]
    """Prefixes of the encoder's tensors inside a whole model."""
    others: tuple[str, ...]
    """Prefixes of other parts, inside and outside the encoder; all the rest must fit."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Older names: pattern and replacement."""


_SPEECH_HEADS = ("lm_head.", "quantizer.", "project_q.", "project_hid.", "projector.", "classifier.", "layer_weights")
_SPEECH_NAMES = (
    (r"pos_conv_embed\.conv\.weight_g$", "pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"pos_conv_embed\.conv\.weight_v$", "pos_conv_embed.conv.parametrizations.weight.original1"),
)
_NAMES: dict[str, Names] = {
    "whisper": Names(
        ("model.encoder.", "encoder."),
        ("model.decoder.", "decoder.", "proj_out.", "projector.", "classifier.", "layer_weights"),
    ),
    # What stands in for masked inputs while pre-training is never put in here.
    "wav2vec2": Names(("wav2vec2.",), ("masked_spec_embed", *_SPEECH_HEADS), _SPEECH_NAMES),
    "hubert": Names(("hubert.",), ("masked_spec_embed", *_SPEECH_HEADS), _SPEECH_NAMES),
    "vit": Names(
        ("vit.",),
        ("pooler.", "classifier.", "decoder.", "embeddings.mask_token"),
        (
            (r"^encoder\.layer\.", "layers."),
            (r"\.attention\.attention\.(query|key|value)\.", r".attention.\1."),
            (r"\.attention\.query\.", ".attention.q_proj."),
            (r"\.attention\.key\.", ".attention.k_proj."),
            (r"\.attention\.value\.", ".attention.v_proj."),
            (r"\.attention\.output\.dense\.", ".attention.o_proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
        ),
    ),
    "clip_vision_model": Names(
        ("vision_model.",),
        (
            *("text_model.", "text_projection.", "visual_projection.", "logit_scale", "classifier."),
            *("post_layernorm.", "embeddings.position_ids"),
        ),
    ),
}


def own_tensors(model_type: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under its own names, from a checkpoint of it alone or of a whole model.

    What belongs to another known part (a decoder, a text tower, a head) is left out; what is unknown stays, so that
    loading complains about it.
    """
    names = _NAMES[model_type]
    # A tower's own names may begin like a prefix: wav2vec2's layers stand in `encoder.`.
    prefix = next((p for p in names.prefixes if any(name.startswith(p) for name in tensors)), "")
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return {_renamed(names, name): tensor for name, tensor in own.items() if not name.startswith(names.others)}


def _renamed(names: Names, name: str) -> str:
    for pattern, replacement in names.renamed:
        name = re.sub(pattern, replacement, name)
    return name
