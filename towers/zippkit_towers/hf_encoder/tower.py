"""Encoders of Hugging Face transformers as sources of waveforms, images and text.

Whisper's, wav2vec2, HuBERT, ViT and CLIP's for images are known by hand; of any other, of text too, the parts are
guessed, and it is run only if its states are exactly transformers' own.

A segment is one waveform, one image's pixels as the model's image processor makes them (normalised floats), or one
text's token ids. A position sees its own segment alone; other towers see the segment once it is complete. Parameters
carry the names that transformers gives them inside the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

from torch import Tensor, nn

from zippkit.batch.batch import Features, TowerBatch
from zippkit.errors import ZippkitError
from zippkit.model.tower import Exported, Tower
from zippkit.model.visibility import Visibility, own_visibility
from zippkit.model.weights import load_into, read_tensors
from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.exported import exported_settings, zeros_for
from zippkit_towers.hf_encoder.guessed import Context, Guessed, n_image_states
from zippkit_towers.hf_encoder.guessed_parity import check_parity as check_guess
from zippkit_towers.hf_encoder.guessed_parity import own_encoder, read_folder
from zippkit_towers.hf_encoder.parity import check_parity
from zippkit_towers.hf_encoder.parts import parts_of
from zippkit_towers.hf_encoder.transformers_model import whole_encoder
from zippkit_towers.hf_encoder.weights import own_tensors


class HfEncoder(Tower[None, Context | Tensor | None]):
    """Transformers' own modules, run layer by layer; nothing in it is random, in training either."""

    Config = HfEncoderConfig
    takes_description = True
    config: HfEncoderConfig

    def __init__(self, config: HfEncoderConfig) -> None:
        super().__init__(config)
        self._compared = False
        self.guessed: Guessed | None = None
        if not config.family.known:
            self.guessed = Guessed(config)
            try:
                self.guessed.adopt(self)
            except KeyError as error:
                raise ZippkitError(f"kind `hf_encoder` does not run a {config.model_type!r} model: {error}") from error
            return
        self.parts = parts_of(config)
        encoder = whole_encoder(config)
        for name, module in encoder.named_children():
            if name not in self.parts.unused:
                self.add_module(name, module)
        if config.model_type == "whisper":
            _fix_positions(cast("nn.Embedding", self.embed_positions))

    def start(
        self, inputs: TowerBatch, mask: Tensor | None, cache: None = None
    ) -> tuple[Tensor, Context | Tensor | None]:
        """Embed the segments; return the states (B, T, D) at depth 0 and what the layers need besides them."""
        if inputs.features is None and self.config.continuous:
            raise ZippkitError(f"a {self.config.model_type!r} tower reads waveforms or pixels, and was given tokens")
        if self.guessed is not None:
            return self.guessed.start(self, inputs)
        features = cast("Features", inputs.features)
        states_NLD = self.parts.embed(self, self.config, features.values, features.lengths)
        # Padding belongs to no segment, so it must not hold another row's states.
        hidden = states_NLD[features.entry, inputs.offset] * (inputs.order >= 0)[:, :, None]
        seen = cast("Visibility", own_visibility(inputs, causal=False)).mask if mask is None else mask
        return hidden, None if seen is None else seen[:, None]

    def layer_modules(self) -> Sequence[nn.Module]:
        """The model's own layers, where its parts are known."""
        if self.guessed is not None:
            return ()
        return list(cast("nn.ModuleList", self.get_submodule(self.parts.layers)))

    def layer(self, index: int, hidden: Tensor, context: Context | Tensor | None) -> Tensor:
        """Run a layer; the last one with the norm that follows it, so that its states are ``last_hidden_state``."""
        if self.guessed is not None:
            return self.guessed.layer(self, index, hidden, cast("Context", context))
        layers = cast("nn.ModuleList", self.get_submodule(self.parts.layers))
        out: Tensor = layers[index](hidden, attention_mask=context)
        if index + 1 == len(layers) and self.parts.norm is not None:
            out = self.get_submodule(self.parts.norm)(out)
        return out

    def train(self, mode: bool = True) -> Self:
        """Set the mode; modules of a model whose parts were guessed stay in evaluation mode.

        So no position is jittered, no patch dropped and no statistic updated, whatever its family does in training.
        """
        super().train(mode)
        for child in self.children() if self.guessed is not None else ():
            child.eval()
        return self

    def head(self, hidden: Tensor) -> Tensor:
        """Raise: an encoder has no logits.

        Raises:
            ZippkitError: always.
        """
        raise ZippkitError(f"a {self.config.model_type!r} tower has states but no logits: it is a source for links")

    def exported(self) -> Exported | None:
        """Transformers' own encoder, run as a whole; None for subclasses."""
        if type(self) is not HfEncoder:
            return None
        unused = zeros_for(self.config, self.state_dict())
        return Exported("hf_encoder", exported_settings(self.config), "encoder.", unused)

    def load_weights(self, path: Path) -> None:
        """Copy an encoder's weights, alone or inside a whole model; then compare with transformers' own forward.

        Raises:
            CheckpointError: weights that do not fit, or states that differ.
        """
        if self.guessed is None:
            load_into(self, own_tensors(self.config.model_type, read_tensors(path)), str(path))
            self._compare(str(path))
        elif (path / "config.json").is_file() and not self._has_no_values():
            # Its settings are read from the folder as it stands, and not from what became of them here.
            own = read_folder(self, path)
            found = own.state_dict()
            load_into(self, {name: found[name] for name in self.state_dict() if name in found}, str(path))
            self._compare(str(path), own)
        else:
            load_into(self, read_tensors(path), str(path))
            self._compare(str(path))

    @staticmethod
    def n_image_states(config: HfEncoderConfig) -> int:
        """Number of states of one image, by the model's own forward on the meta device.

        Raises:
            ValueError: that forward fails.
        """
        return n_image_states(config.model_dump_json())

    def check(self) -> None:
        """Compare with transformers' own forward, where `load_weights` has not done so."""
        if not self._compared:
            self._compare("towers")

    def _has_no_values(self) -> bool:
        return any(tensor.is_meta for tensor in self.state_dict().values())

    def _compare(self, source: str, own: Any = None) -> None:
        if self._has_no_values():
            return
        if self.guessed is None:
            check_parity(self, source)
        else:
            check_guess(self, own_encoder(self) if own is None else own, source)
        self._compared = True


def _fix_positions(positions: nn.Embedding) -> None:
    """Whisper's sinusoids are never trained; as a buffer, they are nobody's to freeze."""
    weight = positions.weight.detach()
    del positions.weight
    positions.register_buffer("weight", weight)
