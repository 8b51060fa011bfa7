"""Sound to discrete units and back: the nearest of k centroids of log-mel windows."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.hub import cached_file


class SpeechUnits:
    """The codebook of one modality, in ``tokenizers/<modality>/`` of the model's folder.

    Example::

        units = SpeechUnits("folder/or/hub-id", "speech")
        ids = units.encode(samples)  # of one channel, at units.sample_rate
        model.generate([[("speech", ids)]], outputs=["text"])
    """

    def __init__(self, place: str, modality: str) -> None:
        """Read the codebook.

        Args:
            place: the model's folder or hub id.
            modality: whose units they are.
        """
        at = f"tokenizers/{modality}"
        with open(str(cached_file(place, f"{at}/units.json")), encoding="utf-8") as file:  # noqa: PTH123
            self.settings: dict[str, Any] = json.load(file)
        tensors = load_file(str(cached_file(place, f"{at}/units.safetensors")))
        self.codebook, self.filters = tensors["codebook"].float(), tensors["filters"].float()
        self.mean, self.std = tensors["mean"], tensors["std"]
        self.sample_rate: int = self.settings["sample_rate"]

    def encode(self, samples: Any) -> list[int]:
        """Unit ids of a recording (samples,) of one channel at `sample_rate`, without begin and end."""
        mel = self._log_mel(torch.as_tensor(samples, dtype=torch.float32))
        if self.settings["normalize"] == "utterance":
            mel = (mel - mel.mean(dim=0)) / mel.std(dim=0, unbiased=False).clamp(min=self.settings["least_std"])
        window, stride = self.settings["window"], self.settings["stride"]
        n_windows = 1 + max(0, -(-(len(mel) - window) // stride))
        # The last frame is repeated, so that every frame is in a window.
        missing = (n_windows - 1) * stride + window - len(mel)
        mel = torch.cat([mel, mel[-1:].expand(max(missing, 0), -1)])
        windows = mel.unfold(0, window, stride).transpose(1, 2).flatten(1)
        return [int(unit) for unit in torch.cdist(windows.double(), self.codebook.double()).argmin(dim=1)]

    def decode(self, ids: Any, seed: int = 0, n_iter: int = 32) -> Tensor:
        """Samples of units, by Griffin-Lim (1984) on their centroids: buzzing, but to be understood."""
        units = torch.tensor([each for each in ids if 0 <= each < len(self.codebook)], dtype=torch.long)
        window, stride, n_mels = self.settings["window"], self.settings["stride"], self.settings["n_mels"]
        if not len(units):
            return torch.zeros(0)
        pieces = self.codebook[units].view(-1, window, n_mels)
        mel = torch.zeros((len(units) - 1) * stride + window, n_mels)
        weight = torch.zeros(len(mel), 1)
        for i, piece in enumerate(pieces):
            mel[i * stride : i * stride + window] += piece
            weight[i * stride : i * stride + window] += 1
        mel = mel / weight
        if self.settings["normalize"] == "utterance":
            mel = mel * self.std + self.mean
        magnitudes = (torch.linalg.pinv(self.filters) @ mel.exp().T).clamp(min=0)
        return self._griffin_lim(magnitudes, seed, n_iter)

    def _spectrum(self, samples: Tensor) -> Tensor:
        n_fft = self.settings["n_fft"]
        window = torch.hann_window(n_fft)
        return torch.stft(samples, n_fft, self.settings["hop"], window=window, pad_mode="constant", return_complex=True)

    def _log_mel(self, samples: Tensor) -> Tensor:
        """(samples,) to (T, n_mels) natural logarithms of mel magnitudes."""
        n, n_fft = len(samples), self.settings["n_fft"]
        magnitudes = self._spectrum(F.pad(samples, (0, max(0, n_fft - n)))).abs()[:, : 1 + n // self.settings["hop"]]
        return (self.filters @ magnitudes).clamp(min=self.settings["floor"]).log().T

    def _griffin_lim(self, magnitudes: Tensor, seed: int, n_iter: int) -> Tensor:
        n_fft, hop = self.settings["n_fft"], self.settings["hop"]
        length = (magnitudes.shape[1] - 1) * hop
        random = torch.Generator().manual_seed(seed)
        phases = torch.polar(torch.ones_like(magnitudes), 6.283185 * torch.rand(magnitudes.shape, generator=random))
        sound = torch.zeros(length)
        for _ in range(n_iter):
            sound = torch.istft(magnitudes * phases, n_fft, hop, window=torch.hann_window(n_fft), length=length)
            rebuilt = self._spectrum(sound)
            phases = rebuilt / rebuilt.abs().clamp(min=1e-8)
        return sound
