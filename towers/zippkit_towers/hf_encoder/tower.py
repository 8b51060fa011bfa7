"""Encoders of Hugging Face transformers as sources: Whisper's, wav2vec2, HuBERT, ViT and CLIP's for images.

A segment is one waveform, or one image's pixels as the model's image processor makes them (normalised floats). A
position sees its own segment alone; other towers see the segment once it is complete. Parameters carry the names that
transformers gives them inside the encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.errors import ZippkitError
from zippkit.model.tower import Tower
from zippkit.model.weights import load_into, read_tensors
from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.parity import check_parity
from zippkit_towers.hf_encoder.parts import parts_of, whole_encoder
from zippkit_towers.hf_encoder.weights import own_tensors


class HfEncoder(Tower):
    """Transformers' own modules, run layer by layer; nothing in it is random, in training either."""

    Config = HfEncoderConfig
    config: HfEncoderConfig

    def __init__(self, config: HfEncoderConfig) -> None:
        super().__init__(config)
        self.parts = parts_of(config)
        encoder = whole_encoder(config)
        for name, module in encoder.named_children():
            if name not in self.parts.unused:
                self.add_module(name, module)
        if config.model_type == "whisper":
            _fix_positions(cast("nn.Embedding", self.embed_positions))

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Tensor | None]:
        if inputs.features is None:
            raise ZippkitError(f"a {self.config.model_type!r} tower reads waveforms or pixels, and was given tokens")
        features = inputs.features
        states_NLD = self.parts.embed(self, self.config, features.values, features.lengths)
        # Padding belongs to no segment, so it must not hold another row's states.
        hidden = states_NLD[features.entry, inputs.offset] * (inputs.order >= 0)[:, :, None]
        return hidden, None if mask is None else mask[:, None]

    def layer(self, index: int, hidden: Tensor, context: Tensor | None) -> Tensor:
        """Run a layer; the last one with the norm that follows it, so that its states are ``last_hidden_state``."""
        layers = cast("nn.ModuleList", self.get_submodule(self.parts.layers))
        out: Tensor = layers[index](hidden, attention_mask=context)
        if index + 1 == len(layers) and self.parts.norm is not None:
            out = self.get_submodule(self.parts.norm)(out)
        return out

    def head(self, hidden: Tensor) -> Tensor:
        raise ZippkitError(f"a {self.config.model_type!r} tower has states but no logits: it is a source for links")

    def load_weights(self, path: Path) -> None:
        """Load an encoder's weights, alone or inside a whole model; then compare with transformers' own forward.

        Raises:
            CheckpointError: weights that do not fit, or states that differ.
        """
        load_into(self, own_tensors(self.config.model_type, read_tensors(path)), str(path))
        if not any(tensor.is_meta for tensor in self.state_dict().values()):
            check_parity(self, str(path))


def _fix_positions(positions: nn.Embedding) -> None:
    """Whisper's sinusoids are never trained; as a buffer, they are nobody's to freeze."""
    weight = positions.weight.detach()
    del positions.weight
    positions.register_buffer("weight", weight)
