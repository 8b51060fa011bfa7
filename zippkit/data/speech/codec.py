"""A neural codec's own ids: EnCodec or Mimi, its codebooks flattened into one sequence, and its decoder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from zippkit.data.audio import Wave
from zippkit.data.speech.pretrained import load_model, model_folder, model_hash
from zippkit.data.speech_tokenizer import Ids, Progress, SpeechTokenizer
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict
from zippkit.system.files import write_text

_CLASSES = {"encodec": "EncodecModel", "mimi": "MimiModel"}


class CodecConfig(Strict):
    """Which codec, and how much of it."""

    model: str = Field(description="Folder or hub id of an EnCodec or Mimi model in safetensors, of one channel.")
    n_codebooks: int = Field(
        8, gt=0, description="The first so many codebooks; each second has so many times its frames."
    )


class _Stored(Strict):
    """The file: the settings, and what is known of the model without loading it."""

    config: CodecConfig
    sha256: str
    model_type: str
    sample_rate: int
    codebook_size: int
    samples_per_frame: int


@dataclass(frozen=True, eq=False)
class CodecTokenizer(SpeechTokenizer):
    """Sound to a codec's ids and back (kind ``codec``): frame after frame, codebook c's ids begin at c * its size."""

    Config: ClassVar[type[CodecConfig]] = CodecConfig
    kind: ClassVar[str] = "codec"
    suffix: ClassVar[str] = ".json"

    stored: _Stored

    @property
    def config(self) -> CodecConfig:
        """The settings."""
        return self.stored.config

    @property
    def begin(self) -> int:
        """Id that opens a segment."""
        return self.config.n_codebooks * self.stored.codebook_size

    @property
    def sample_rate(self) -> int:
        """Sample rate of the sound, in Hz."""
        return self.stored.sample_rate

    @property
    def units_per_second(self) -> float:
        """Units that a second of sound becomes."""
        return self.config.n_codebooks * self.stored.sample_rate / self.stored.samples_per_frame

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model's and the number of codebooks; where the model lies does not matter."""
        decides = self.stored.model_dump_json(exclude={"config": {"model"}})
        return hashlib.sha256(decides.encode()).hexdigest()

    @classmethod
    def rate_for(cls, config: Any) -> int:
        """Return the sample rate that ``train`` takes with these settings, in Hz."""
        folder, told = model_folder(config.model, _CLASSES, cls.kind)
        return _facts(config, folder, told)[0].sample_rate

    @classmethod
    def train(cls, waves: Iterable[Wave], config: Any = None, seed: int = 0, progress: Progress | None = None) -> Self:
        """Nothing is trained, and ``waves`` is not read.

        Raises:
            DataError: no model, one of another kind, of several channels, or with fewer codebooks.
        """
        if config is None:
            raise DataError("codec needs a model; set model (units.model=PATH)")
        folder, told = model_folder(config.model, _CLASSES, cls.kind)
        stored, n_codebooks = _facts(config, folder, told)
        if config.n_codebooks > n_codebooks:
            raise DataError(
                f"codec: n_codebooks is {config.n_codebooks}, expected 1 to {n_codebooks}, those of {folder}"
            )
        return cls(stored)

    @torch.no_grad()
    def encode(self, wave: Wave, rate: int) -> NDArray[np.int64]:
        """(F * n_codebooks,) ids of F frames."""
        self.check_rate(wave, rate)
        n, size = self.config.n_codebooks, self.stored.codebook_size
        codes_CF = self._encode(torch.from_numpy(np.asarray(wave, np.float32))[None, None])[:n]
        ids: NDArray[np.int64] = rearrange(codes_CF + size * torch.arange(n)[:, None], "c f -> (f c)").numpy()
        return ids

    @torch.no_grad()
    def to_sound(self, ids: Ids, seed: int = 0) -> Wave:
        """Return samples by the codec's decoder, which is deterministic; ``seed`` is not used.

        An id of another codebook than its position calls for is passed over, and an unfinished frame at the end too: a
        language model is not forced to keep the order.
        """
        codes_FC = self._frames(self.units_of(ids))
        if not len(codes_FC):
            return np.zeros(0, np.float32)
        codes = torch.from_numpy(codes_FC.T.copy())[None]
        if self.stored.model_type == "encodec":
            sound = self._model.decode(codes[None], [None]).audio_values
        else:
            sound = self._model.decode(codes).audio_values
        wave: Wave = sound[0, 0].float().numpy()
        return wave

    def save(self, path: str | Path) -> None:
        """A JSON file: the settings, and the model's hash."""
        write_text(path, self.stored.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote; the model itself is read, and its hash compared, when it is used."""
        try:
            return cls(_Stored.model_validate_json(Path(path).read_bytes()))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (OSError, ValidationError) as error:
            raise DataError(f"{path}: not a readable codec tokenizer ({' '.join(str(error).split())})") from None

    @cached_property
    def _model(self) -> Any:
        return load_model(self.config.model, _CLASSES, self.kind, self.stored.sha256)[0]

    def _encode(self, wave: Tensor) -> Tensor:
        """(C, F) codes of at least the codebooks that are asked for."""
        model, n = self._model, self.config.n_codebooks
        if self.stored.model_type == "mimi":
            codes: Tensor = model.encode(wave, num_quantizers=n).audio_codes[0]
            return codes
        per_codebook = math.log2(self.stored.codebook_size) * self.sample_rate / self.stored.samples_per_frame / 1000
        enough = [b for b in sorted(model.config.target_bandwidths) if b >= n * per_codebook - 1e-6]
        bandwidth = enough[0] if enough else max(model.config.target_bandwidths)
        several: Tensor = model.encode(wave, bandwidth=bandwidth).audio_codes
        return several[0, 0]

    def _frames(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """(F, n_codebooks) codes of the frames that are whole."""
        n, size = self.config.n_codebooks, self.stored.codebook_size
        kept: list[int] = []
        for unit in units.tolist():
            if unit // size == len(kept) % n:
                kept.append(unit % size)
        return rearrange(np.array(kept[: len(kept) - len(kept) % n], np.int64), "(f c) -> f c", c=n)


def _facts(config: CodecConfig, folder: Path, told: dict[str, Any]) -> tuple[_Stored, int]:
    """Content of the file, and how many codebooks the model has."""
    try:
        import transformers
    except ImportError as error:
        raise DataError(f"codec needs transformers: pip install 'zippkit[hf]' ({error})") from None
    model_config: Any = transformers.AutoConfig.for_model(**told)
    if model_config.audio_channels != 1 or getattr(model_config, "chunk_length", None) is not None:
        raise DataError(
            f"codec: {folder} is for {model_config.audio_channels} channels, or chunks; expected one, whole"
        )
    stored = _Stored(
        config=config,
        sha256=model_hash(folder),
        model_type=told["model_type"],
        sample_rate=model_config.sampling_rate,
        codebook_size=model_config.codebook_size,
        samples_per_frame=round(model_config.sampling_rate / model_config.frame_rate),
    )
    return stored, model_config.num_quantizers
