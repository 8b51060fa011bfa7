"""Shapes of encoders that are not known by hand, from their own config.json; without torch.

A key that is left out takes transformers' own default, which is asked for; that imports transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, Literal

from zippkit.errors import did_you_mean

Model = Mapping[str, Any]
"""A Hugging Face config as plain data."""
Feed = Literal["sound", "image", "text"]

EXACT = frozenset(
    """
    aimv2 aimv2_vision_model albert aya_vision bart beit bert bert-generation big_bird bigbird_pegasus
    blenderbot blenderbot-small camembert chinese_clip chinese_clip_vision_model clip clip_text_model
    cohere2_vision convbert data2vec-audio data2vec-text data2vec-vision deberta deberta-v2 deepseek_vl
    deepseek_vl_hybrid deit dinov2 dinov2_with_registers dinov3_vit distilbert dpt electra embedding_gemma2_text
    ernie esm esmc eurobert fnet gemma3 granite4_vision granite_docling_text gte ibert ijepa internvl
    internvl_vision jina_embeddings_v3 layoutlm llava llava_next llava_next_video llava_onevision longt5 luke
    m2m_100 marian markuplm mbart megatron-bert mlcd mlcd_vision_model modernbert modernvbert molmo2_text mpnet
    mt5 muse_glimmer_text mvp nllb-moe nomic_bert nystromformer openai_privacy_filter paligemma pegasus pixio
    plbart qianfan_ocr qianfan_ocr_vision qwen3_vl_text radio rembert roberta roberta-prelayernorm roc_bert
    roformer sapiens2 seamless_m4t seamless_m4t_v2 siglip siglip_vision_model splinter t5 t5gemma2_encoder tapas
    tipsv2 tipsv2_text_model tipsv2_vision_model ultrabert ultravbert umt5 unispeech unispeech-sat video_llava
    vipllava vision-text-dual-encoder visual_bert vit_msn wav2vec2-conformer wavlm xlm-roberta xlm-roberta-xl
    yoso
    """.split()  # noqa: SIM905 (one line a word otherwise)
)
"""Families that docs/encoder_families.py found to be exact, beside those known by hand. Any other is tried too."""

_KEYS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "d_model", "dim", "n_embd", "emb_dim"),
    # An encoder with a decoder behind it may count both.
    "num_hidden_layers": ("encoder_layers", "num_hidden_layers", "num_layers", "n_layers", "n_layer"),
    "vocab_size": ("vocab_size",),
    "image_size": ("image_size",),
    "patch_size": ("patch_size",),
    "num_channels": ("num_channels",),
    "conv_dim": ("conv_dim",),
    "conv_kernel": ("conv_kernel",),
    "conv_stride": ("conv_stride",),
}
"""The settings of a shape, and the keys under which families have them."""
_NEEDED: dict[Feed, tuple[str, ...]] = {
    "sound": ("hidden_size", "num_hidden_layers", "conv_dim", "conv_kernel", "conv_stride"),
    "image": ("hidden_size", "num_hidden_layers", "image_size", "patch_size", "num_channels"),
    "text": ("hidden_size", "num_hidden_layers", "vocab_size"),
}
_POSITIONS_BEHIND_PADDING = frozenset(
    """roberta xlm-roberta xlm-roberta-xl roberta-prelayernorm camembert data2vec-text xmod ibert longformer mpnet esm
    luke markuplm lilt mra layoutlmv3""".split()  # noqa: SIM905 (one line a word otherwise)
)
"""Families whose position ids start behind the padding token's id, so that they have fewer than the config says."""


def shape_of(model: Model) -> dict[str, Any]:
    """The keys of `_KEYS` that a model is described by, and its ``feed``.

    Raises:
        ValueError: transformers knows no such model, or does not take its settings, or it tells no shape.
    """
    given = _read(model)
    feed = _feed(given)
    if feed is None or any(key not in given for key in _NEEDED[feed]):
        given = _read(_defaults(json.dumps(dict(model), sort_keys=True, default=str))) | given
        feed = _feed(given)
    if feed is None:
        raise ValueError(
            f"a {model['model_type']!r} model tells the size of no vocabulary, image or convolution; it is made of "
            "several models, or fed something else than token ids, pixels or waveforms"
        )
    missing = [key for key in _NEEDED[feed] if given.get(key) is None]
    if missing:
        raise ValueError(f"a {model['model_type']!r} model does not tell its {' and '.join(missing)}")
    return given | {"feed": feed}


def max_len_of(model: Model) -> int | None:
    """Longest segment of token ids, for a model with learned positions."""
    longest, padding = model.get("max_position_embeddings"), model.get("pad_token_id", 1)
    if type(longest) is not int or longest < 1:
        return None
    behind = model["model_type"] in _POSITIONS_BEHIND_PADDING and type(padding) is int
    return longest - padding - 1 if behind else longest


def vision_part(model: Model) -> dict[str, Any] | None:
    """The vision tower's config inside that of a model of images and text, if it is one."""
    part, name = model.get("vision_config"), model.get("model_type")
    if not isinstance(part, dict) or not isinstance(name, str):
        return None
    told = part.get("model_type")
    return {**part, "model_type": told if isinstance(told, str) and told != name else f"{name}_vision_model"}


def _read(model: Model) -> dict[str, Any]:
    found = {key: next((k for k in names if model.get(k) is not None), None) for key, names in _KEYS.items()}
    return {key: model[name] for key, name in found.items() if name is not None}


def _feed(given: Model) -> Feed | None:
    """Models of waveforms and of pixels may have a vocabulary too: of what they transcribe, or of visual tokens."""
    if "conv_kernel" in given and "conv_stride" in given:
        return "sound"
    if "image_size" in given or "patch_size" in given:
        return "image"
    return "text" if "vocab_size" in given else None


@cache
def _defaults(model: str) -> dict[str, Any]:
    """Every setting of a model, given as JSON, with transformers' own defaults under the names of `_KEYS`."""
    given = json.loads(model)
    try:
        transformers: Any = import_module("transformers")
        known: Any = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    except ImportError as error:
        raise ValueError(
            f"a {given['model_type']!r} model leaves out what transformers would tell: pip install 'zippkit[hf]'"
        ) from error
    if given["model_type"] not in known:
        near = did_you_mean(given["model_type"], known)
        raise ValueError(f"transformers knows no {given['model_type']!r} model{near}")
    try:
        config = transformers.AutoConfig.for_model(**given)
        return {name: getattr(config, name, None) for names in _KEYS.values() for name in names}
    except Exception as error:
        # transformers checks its settings in its own ways.
        raise ValueError(
            f"transformers takes no {given['model_type']!r} model of this config: {one_line(error)}"
        ) from error


def one_line(error: BaseException) -> str:
    """An error's message in one line of at most 200 characters."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:197]}..."
