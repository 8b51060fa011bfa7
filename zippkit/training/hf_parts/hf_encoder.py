"""An encoder of transformers as a source: of waveforms, images or text, whole segments at a time."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel


class HfEncoder(nn.Module):
    """Transformers' own encoder; it is run on one segment at a time, so none sees another's padding."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings
        config = AutoConfig.for_model(**settings["model"])
        if settings["module"] is None:
            whole: Any = AutoModel.from_config(config)
            encoder = whole.get_encoder() if getattr(whole.config, "is_encoder_decoder", False) else whole
        else:
            module: Any = import_module(f"transformers.models.{settings['module']}")
            encoder = getattr(module, settings["class"])(config, **settings["arguments"])
        for path in settings["unused"]:
            encoder.set_submodule(path, nn.Identity())
        self.encoder = encoder

    def train(self, mode: bool = True) -> HfEncoder:
        """Stay in evaluation mode: nothing in a source is random."""
        del mode
        return super().train(False)

    def states(self, segments: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Run a segment of each row.

        Args:
            segments: waveforms (samples,), images (channels, height, width), or token ids with begin and end around.

        Returns:
            For each depth the states (B, S, D), 0 at padding, and (B, S) bool: no padding.
        """
        found = [self._one(segment) for segment in segments]
        longest = max(len(states[-1]) for states in found)
        real = torch.stack([torch.arange(longest, device=states[-1].device) < len(states[-1]) for states in found])
        padded = [[F.pad(each, (0, 0, 0, longest - len(each))) for each in states] for states in found]
        return [torch.stack(rows) for rows in zip(*padded, strict=True)], real

    def _one(self, segment: Tensor) -> list[Tensor]:
        """States (S, D) of one segment at each depth; the last ones with the norm that follows them."""
        first = next(self.encoder.parameters())
        inputs = self._inputs(segment.to(first.device))[None]
        inputs = inputs if inputs.dtype == torch.long else inputs.to(first.dtype)
        out = self.encoder(**{self.settings["argument"]: inputs}, output_hidden_states=True)
        return [states[0] for states in (*out.hidden_states[: self.settings["n_layers"]], out.last_hidden_state)]

    def _inputs(self, segment: Tensor) -> Tensor:
        if self.settings["feed"] == "window":
            return self._log_mel(F.pad(segment, (0, self.settings["n_samples"] - len(segment))))
        if self.settings["normalize"]:
            return (segment - segment.mean()) / (segment.var(unbiased=False) + 1e-7).sqrt()
        return segment

    def _log_mel(self, waveform: Tensor) -> Tensor:
        """(samples,) to (n_mels, frames), as Whisper's feature extractor computes it (arXiv 2212.04356)."""
        from transformers.audio_utils import mel_filter_bank

        n_mels = self.settings["n_mels"]
        filters = mel_filter_bank(201, n_mels, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
        window = torch.hann_window(400, device=waveform.device)
        power = torch.stft(waveform.float(), 400, 160, window=window, return_complex=True)[..., :-1].abs().square()
        mel = (torch.from_numpy(filters).float().to(power.device).T @ power).clamp(min=1e-10).log10()
        return (torch.maximum(mel, mel.max() - 8) + 4) / 4
