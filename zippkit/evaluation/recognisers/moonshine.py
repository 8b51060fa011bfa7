"""Moonshine tiny-en (Jeffries et al., 2024, MIT) through onnxruntime, from the files inside two wheels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zippkit.data.audio import Wave
from zippkit.evaluation.recognisers.base import MissingScorerError, Scorer, pinned
from zippkit.spec.kinds import Strict
from zippkit.system.extras import require

SHA256 = {
    ("moonshine_voice", "assets/tiny-en/encoder_model.ort"): (
        "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221"
    ),
    ("moonshine_voice", "assets/tiny-en/decoder_model_merged.ort"): (
        "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0"
    ),
    ("moonshine_onnx", "assets/tokenizer.json"): "b68b995a58b3373db6c4f46864a9db50cd1333d086150ffa2c1096581ede9c10",
}
"""Package and file to contents: another release with other weights would give other scores without a word."""
START, END = 1, 2
_LAYERS, _HEADS, _HEAD_DIM = 6, 8, 36
_SHORTEST = 4_000
"""Samples; the encoder's convolutions need some, and shorter sounds are padded with silence."""


class MoonshineConfig(Strict):
    """How Moonshine listens."""

    tokens_per_second: float = Field(6.5, gt=0, description="Longest answer; the model repeats itself on noise.")
    threads: int = Field(1, ge=0, description="Threads of onnxruntime; 0 takes every core.")


class Moonshine(Scorer):
    """Greedy transcripts of whole utterances in English, one at a time (kind ``moonshine``)."""

    Config: ClassVar[type[Strict]] = MoonshineConfig

    def __init__(self, config: MoonshineConfig) -> None:
        require("onnxruntime", "moonshine_voice", "moonshine_onnx", error=MissingScorerError)
        import onnxruntime
        from tokenizers import Tokenizer

        encoder, decoder, tokenizer = (pinned(package, file, sha) for (package, file), sha in SHA256.items())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config.threads
        self._config = config
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            for content in (encoder, decoder)
        )
        self._tokenizer = Tokenizer.from_str(tokenizer.decode())

    @property
    def sample_rate(self) -> int:
        """Rate of the sound to transcribe, in Hz."""
        return 16_000

    def transcribe(self, waves: Sequence[Wave]) -> list[str]:
        """Return the words of each whole utterance; empty where none are heard."""
        return [self._one(np.asarray(wave, np.float32)) if len(wave) else "" for wave in waves]

    def _one(self, wave: Wave) -> str:
        samples = np.pad(wave, (0, max(0, _SHORTEST - len(wave))))[None]
        # One entry for each sample, for the decoder too: with one for each frame it fails at about nine seconds.
        mask = np.ones(samples.shape, np.int64)
        (states,) = self._encoder.run(None, {"input_values": samples, "attention_mask": mask})
        most = max(1, round(samples.shape[1] / self.sample_rate * self._config.tokens_per_second))
        ids = self._greedy({"encoder_hidden_states": states, "encoder_attention_mask": mask}, most)
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def _greedy(self, given: dict[str, NDArray[Any]], most: int) -> list[int]:
        """At most ``most`` token ids, the end id left out."""
        names = [f"{i}.{who}.{what}" for i in range(_LAYERS) for who in ("decoder", "encoder") for what in _KEPT]
        past = {f"past_key_values.{name}": np.zeros((0, _HEADS, 1, _HEAD_DIM), np.float32) for name in names}
        ids = [START]
        while len(ids) <= most:
            cached = len(ids) > 1
            step = {"input_ids": np.array([ids[-1:]]), "use_cache_branch": np.array([cached])}
            logits, *present = self._decoder.run(None, given | past | step)
            if (token := int(logits[0, -1].argmax())) == END:
                break
            ids.append(token)
            for name, value in zip(past, present, strict=True):
                # The keys of the sound are computed once; later steps give back empty ones.
                if not cached or ".decoder." in name:
                    past[name] = value
        return ids[1:]


_KEPT = ("key", "value")
