"""Units of self-supervised features: a layer of HuBERT, wav2vec2 or w2v-BERT 2.0, and the nearest of k centroids."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from zippkit.data.audio import Wave
from zippkit.data.kmeans import Reservoir, cluster, nearest
from zippkit.data.speech.pretrained import load_model, model_folder, model_hash
from zippkit.data.speech_tokenizer import Ids, Progress, SpeechTokenizer, Vocoder
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict
from zippkit.system.files import appearing, parse_json

_METADATA_KEY = "zippkit_ssl_units"
_CLASSES = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model", "wav2vec2-bert": "Wav2Vec2BertModel"}
_SHORTEST = 0.05
"""Seconds; anything shorter is padded with silence, so that every model makes a state of it."""


class SslUnitConfig(Strict):
    """Which features, and how many different units."""

    model: str = Field(description="Folder or hub id of a HuBERT, wav2vec2 or w2v-BERT 2.0 model in safetensors.")
    layer: int = Field(
        6, ge=0, description="Layers that have run when the states are taken; 0 is the input of the first."
    )
    n_units: int = Field(500, gt=0, le=65_534, description="Size of the codebook; begin and end ids come after it.")


class _Model(Strict):
    """Facts about the model that need no weights."""

    sha256: str
    sample_rate: int
    samples_per_unit: int


@dataclass(frozen=True, eq=False)
class SslUnits(SpeechTokenizer):
    """Sound to units of a pre-trained model's states (kind ``ssl_units``); back only with a vocoder."""

    Config: ClassVar[type[SslUnitConfig]] = SslUnitConfig
    kind: ClassVar[str] = "ssl_units"
    takes_vocoder: ClassVar[bool] = True

    config: SslUnitConfig
    model: _Model
    codebook: NDArray[np.float16]
    """(n_units, D) centroids, exactly as they are stored."""
    vocoder: Vocoder | None = None

    @property
    def begin(self) -> int:
        """Id that opens a segment."""
        return self.config.n_units

    @property
    def sample_rate(self) -> int:
        """Sample rate of the sound, in Hz."""
        return self.model.sample_rate

    @property
    def units_per_second(self) -> float:
        """Units that a second of sound becomes."""
        return self.model.sample_rate / self.model.samples_per_unit

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model's, the layer and the codebook; where the model lies does not matter."""
        decides = f"{self.model.model_dump_json()} {self.config.layer} {self.config.n_units}"
        return hashlib.sha256(decides.encode() + np.ascontiguousarray(self.codebook).tobytes()).hexdigest()

    @classmethod
    def rate_for(cls, config: Any) -> int:
        """Return the sample rate that ``train`` takes with these settings, in Hz."""
        folder, told = model_folder(config.model, _CLASSES, cls.kind)
        rate: int = _extractor(folder, told["model_type"]).sampling_rate
        return rate

    @classmethod
    def train(
        cls,
        waves: Iterable[Wave],
        config: Any = None,
        seed: int = 0,
        progress: Progress | None = None,
        max_states: int = 200_000,
    ) -> Self:
        """k-means over at most ``max_states`` states of ``waves``, a uniform sample if there are more.

        Raises:
            DataError: no model, one of another kind, too few layers, or fewer different states than units.
        """
        if config is None:
            raise DataError("ssl_units needs a model; set model (units.model=PATH)")
        folder, told = model_folder(config.model, _CLASSES, cls.kind)
        n_layers = told.get("num_hidden_layers")
        if n_layers is not None and config.layer > n_layers:
            raise DataError(f"ssl_units: layer is {config.layer}, expected 0 to {n_layers}, the layers of {folder}")
        empty = cls(config, _facts(folder, told), np.zeros((0, 0), np.float16))
        sample = Reservoir(max_states, seed)
        for wave in waves:
            sample.add(empty._states(wave))
        codebook = cluster(sample.rows, config.n_units, seed, progress).astype(np.float16)
        # The model that is loaded already comes along.
        trained = replace(empty, codebook=codebook)
        trained.__dict__["_loaded"] = empty._loaded
        return trained

    def encode(self, wave: Wave, rate: int) -> NDArray[np.int64]:
        """Return the ids, without begin and end."""
        self.check_rate(wave, rate)
        return nearest(self._states(wave), self.codebook.astype(np.float32))

    def to_sound(self, ids: Ids, seed: int = 0) -> Wave:
        """Return samples at ``sample_rate``; begin and end are left out."""
        units = self.units_of(ids)
        if self.vocoder is None:
            raise DataError("ssl_units have no way back to sound without a vocoder; prepare the data with --vocoder")
        return self.vocoder.to_sound(units, seed)

    def with_vocoder(self, vocoder: Vocoder) -> Self:
        """Return the same tokenizer with a trained vocoder; ids mean what they did."""
        self.check_vocoder(vocoder)
        return replace(self, vocoder=vocoder)

    def save(self, path: str | Path) -> None:
        """One safetensors file: the codebook, and in its metadata where the model is and its hash."""
        from safetensors.numpy import save_file

        told = {"config": self.config.model_dump(), "model": self.model.model_dump()}
        with appearing(path) as new:
            save_file({"codebook": self.codebook}, new, metadata={_METADATA_KEY: json.dumps(told, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote; the model itself is read, and its hash compared, when something is encoded."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                told = parse_json((file.metadata() or {})[_METADATA_KEY])
                config, model = SslUnitConfig(**told["config"]), _Model(**told["model"])
                codebook: NDArray[Any] = file.get_tensor("codebook")
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except KeyError:
            raise DataError(f"{path}: a safetensors file, but not one of ssl_units") from None
        except (SafetensorError, OSError, ValidationError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not readable ssl_units ({' '.join(str(error).split())})") from None
        if codebook.dtype != np.float16 or codebook.ndim != 2 or len(codebook) != config.n_units:
            expected = f"float16({config.n_units}, width)"
            raise DataError(f"{path}: the codebook is {codebook.dtype}{codebook.shape}, expected {expected}")
        return cls(config, model, codebook)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The model, and transformers' feature extractor for it."""
        model, folder = load_model(self.config.model, _CLASSES, self.kind, self.model.sha256)
        return model, _extractor(folder, model.config.model_type)

    @torch.no_grad()
    def _states(self, wave: Wave) -> NDArray[np.float32]:
        """(U, D) states of a recording."""
        if len(wave) == 0:
            raise DataError("no samples to encode")
        model, extract = self._loaded
        wave = np.pad(np.asarray(wave, np.float32), (0, max(0, round(_SHORTEST * self.sample_rate) - len(wave))))
        inputs = extract(wave, sampling_rate=self.sample_rate, return_tensors="pt")
        states: NDArray[np.float32] = (
            model(**inputs, output_hidden_states=True).hidden_states[self.config.layer][0].numpy()
        )
        return states


def _facts(folder: Path, told: dict[str, Any]) -> _Model:
    extractor = _extractor(folder, told["model_type"])
    if told["model_type"] == "wav2vec2-bert":
        # Filter banks every 10 ms, ``stride`` of them to a state.
        samples = round(0.01 * extractor.sampling_rate) * extractor.stride
    else:
        samples = math.prod(told["conv_stride"])
    return _Model(sha256=model_hash(folder), sample_rate=extractor.sampling_rate, samples_per_unit=samples)


def _extractor(folder: Path, model_type: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise DataError(f"ssl_units needs transformers: pip install 'zippkit[hf]' ({error})") from None
    is_bert = model_type == "wav2vec2-bert"
    cls = transformers.SeamlessM4TFeatureExtractor if is_bert else transformers.Wav2Vec2FeatureExtractor
    if (folder / "preprocessor_config.json").is_file():
        return cls.from_pretrained(folder, local_files_only=True)
    return cls()
