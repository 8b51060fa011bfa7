"""From units back to sound: a small network that writes the log-mel frames of each unit from its neighbours too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.data.audio import Wave, log_mel, mel_filters, mel_to_sound
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict
from zippkit.system.files import appearing

_METADATA_KEY = "zippkit_vocoder"


class VocoderConfig(Strict):
    """Shapes: U units, R frames per unit, M mel bands."""

    tokenizer: str = Field(description="Fingerprint of the tokenizer whose units it turns into sound.")
    n_units: int = Field(gt=0, description="Units that it knows, begin and end not counted.")
    sample_rate: int = Field(gt=0, description="Of the sound, in Hz.")
    hop: int = Field(gt=0, description="Samples from one frame to the next.")
    frames_per_unit: int = Field(gt=0, description="R, frames that a unit lasts.")
    n_mels: int = Field(80, gt=0, description="Mel bands per frame.")
    n_fft: int = Field(512, gt=0, multiple_of=2, description="Analysis window, in samples.")
    dim: int = Field(192, gt=0, description="Width of the network.")
    dilations: list[int] = Field([1, 2, 4, 1, 2, 4], min_length=1, description="Of its layers, kernels of 3 units.")
    n_iter: int = Field(60, gt=0, description="Iterations of Griffin-Lim.")


class UnitVocoder(nn.Module):
    """A unit's average frames, and what its neighbours change of them (dilated convolutions over units, then frames).

    An average over all places where a unit was heard is blurred; a few units to either side tell which of them it is.
    """

    averages: Tensor
    """(n_units, R * M) log-mel frames of each unit, averaged over the training recordings."""
    gain: Tensor
    """(M,) what makes a band vary as much as it does in recordings; a network with an L1 loss makes it vary less."""
    offset: Tensor
    """(M,) what keeps a band's average where it is in recordings."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("gain", torch.ones(config.n_mels))
        self.register_buffer("offset", torch.zeros(config.n_mels))
        dim, width = config.dim, config.frames_per_unit * config.n_mels
        self.register_buffer("averages", torch.zeros(config.n_units, width))
        self.embedding = nn.Embedding(config.n_units, dim)
        self.project = nn.Linear(width, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in config.dilations)
        self.layers = nn.ModuleList(nn.Conv1d(dim, dim, 3, dilation=d, padding=d) for d in config.dilations)
        self.out = nn.Linear(dim, width)
        self.widen = nn.Conv1d(config.n_mels, 128, 5, padding=2)
        self.narrow = nn.Conv1d(128, config.n_mels, 5, padding=2)
        # It starts as the averages alone.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.narrow.weight)

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of the tokenizer whose units it turns into sound."""
        return self.config.tokenizer

    def forward(self, ids_BU: Tensor, dropout: float = 0.0) -> Tensor:
        """(B, U) units to (B, U * R, M) log-mel frames."""
        averages = F.embedding(ids_BU, self.averages)
        x_BUD = F.dropout(self.embedding(ids_BU) + self.project(averages), dropout, self.training)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x_BUD = x_BUD + F.dropout(F.gelu(layer(norm(x_BUD).mT).mT), dropout, self.training)
        mel = rearrange(averages + self.out(x_BUD), "b u (r m) -> b (u r) m", m=self.config.n_mels)
        smoothed: Tensor = mel + self.narrow(F.gelu(self.widen(mel.mT))).mT
        return smoothed

    @torch.no_grad()
    def mel(self, units: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """(U * R, M) log-mel frames; units outside the codebook, frame ids among them, are left out."""
        ids = np.asarray(units, np.int64)
        ids = ids[(ids >= 0) & (ids < self.config.n_units)]
        if not ids.size:
            return np.zeros((0, self.config.n_mels), np.float32)
        mel = self.eval()(torch.from_numpy(ids)[None])[0] * self.gain + self.offset
        frames: NDArray[np.float32] = mel.numpy()
        return frames

    def to_sound(self, units: Sequence[int] | NDArray[np.integer], seed: int = 0) -> Wave:
        """Samples at ``config.sample_rate``, by Griffin-Lim from phases drawn with ``seed``."""
        config = self.config
        return mel_to_sound(
            self.mel(units), config.sample_rate, config.n_fft, config.hop, seed=seed, n_iter=config.n_iter
        )

    def target(self, wave: Wave, n_units: int) -> NDArray[np.float32]:
        """(n_units * R, M) log-mel frames of a recording of so many units, cut or its last frame repeated."""
        config = self.config
        filters = mel_filters(config.sample_rate, config.n_fft, config.n_mels)
        mel = log_mel(wave, filters, config.hop)[: n_units * config.frames_per_unit]
        return np.pad(mel, ((0, n_units * config.frames_per_unit - len(mel)), (0, 0)), mode="edge")

    def save(self, path: str | Path) -> None:
        """One safetensors file, the config in its metadata."""
        from safetensors.torch import save_file

        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        with appearing(path) as new:
            save_file(state, new, metadata={_METADATA_KEY: self.config.model_dump_json()})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing, cut short, or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                config = VocoderConfig.model_validate_json((file.metadata() or {})[_METADATA_KEY])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            vocoder = cls(config)
            vocoder.load_state_dict(state)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except KeyError:
            raise DataError(f"{path}: a safetensors file, but not a vocoder's") from None
        except (SafetensorError, OSError, ValidationError, RuntimeError) as error:
            raise DataError(f"{path}: not a readable vocoder ({' '.join(str(error).split())})") from None
        return vocoder.eval()
