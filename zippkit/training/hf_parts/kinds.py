"""The kinds of towers and of links that config.json names."""

from __future__ import annotations

from torch import nn

from zippkit.training.hf_parts.cross_attention import CrossAttention
from zippkit.training.hf_parts.decoder import Decoder
from zippkit.training.hf_parts.gated_cross_attention import GatedCrossAttention
from zippkit.training.hf_parts.hf_causal_lm import HfCausalLm
from zippkit.training.hf_parts.hf_encoder import HfEncoder
from zippkit.training.hf_parts.image_units import ImageUnits
from zippkit.training.hf_parts.link import Link
from zippkit.training.hf_parts.prefix import Prefix
from zippkit.training.hf_parts.resampler import Resampler

TOWERS: dict[str, type[nn.Module]] = {
    # only with decoder
    "decoder": Decoder,
    # only with image_units
    "image_units": ImageUnits,
    # only with hf_causal_lm
    "hf_causal_lm": HfCausalLm,
    # only with hf_encoder
    "hf_encoder": HfEncoder,
}
LINKS: dict[str, type[Link]] = {
    # only with gated_cross_attention
    "gated_cross_attention": GatedCrossAttention,
    # only with cross_attention
    "cross_attention": CrossAttention,
    # only with prefix
    "prefix": Prefix,
    # only with resampler
    "resampler": Resampler,
}
