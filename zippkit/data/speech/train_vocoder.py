"""Train a vocoder: units of recordings in, their log-mel frames out, an L1 loss on the frames and their changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from zippkit.data.audio import Wave
from zippkit.data.speech.vocoder import UnitVocoder, VocoderConfig
from zippkit.data.speech_tokenizer import Progress, SpeechTokenizer
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict

_COMPARED = 150
"""Recordings whose variance is compared."""


class TrainVocoder(Strict):
    """How a vocoder is trained; the defaults take some minutes of one thread."""

    steps: int = Field(1200, gt=0, description="Steps of Adam.")
    batch: int = Field(32, gt=0, description="Pieces of recordings in a step.")
    seconds: float = Field(2.5, gt=0, description="Length of a piece.")
    lr: float = Field(2e-3, gt=0, description="Largest learning rate; it warms up, then falls as a cosine.")
    dropout: float = Field(0.1, ge=0, lt=1)
    max_hours: float = Field(4.0, gt=0, description="Recordings beyond these are not looked at.")


def train_vocoder(
    tokenizer: SpeechTokenizer,
    waves: Iterable[Wave],
    settings: TrainVocoder | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> UnitVocoder:
    """Train a vocoder for the tokenizer's units; equal seeds give equal vocoders.

    Args:
        tokenizer: whose units it turns into sound.
        waves: recordings at the tokenizer's sample rate, read once; all are read, also those that are not used.
        settings: the defaults if left out.
        seed: of the weights and of the pieces that are drawn.
        progress: told of every step.

    Raises:
        DataError: there are no recordings.
    """
    settings = settings or TrainVocoder()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vocoder = UnitVocoder(config_for(tokenizer))
        units, mels = _encoded(tokenizer, vocoder, waves, settings, progress)
        vocoder.averages.copy_(_averages(units, mels, vocoder.config))
        _fit(vocoder, units, mels, settings, seed, progress)
        _match_variance(vocoder, units, mels)
    return vocoder.eval()


def config_for(tokenizer: SpeechTokenizer) -> VocoderConfig:
    """Frames of about 10 ms, a whole number to a unit.

    Raises:
        DataError: a unit does not last a whole number of samples.
    """
    samples = tokenizer.sample_rate / tokenizer.units_per_second
    frames = max(1, round(samples / (0.01 * tokenizer.sample_rate)))
    if abs(samples / frames - round(samples / frames)) > 1e-6:
        raise DataError(f"a unit lasts {samples:g} samples, which {frames} frames do not divide")
    return VocoderConfig(
        tokenizer=tokenizer.fingerprint,
        n_units=tokenizer.begin,
        sample_rate=tokenizer.sample_rate,
        hop=round(samples / frames),
        frames_per_unit=frames,
    )


def _encoded(
    tokenizer: SpeechTokenizer,
    vocoder: UnitVocoder,
    waves: Iterable[Wave],
    settings: TrainVocoder,
    progress: Progress | None,
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]:
    units, mels, seconds = [], [], 0.0
    for wave in waves:
        if seconds < settings.max_hours * 3600:
            units.append(tokenizer.encode(wave, tokenizer.sample_rate))
            mels.append(vocoder.target(wave, len(units[-1])))
            seconds += len(wave) / tokenizer.sample_rate
            if progress:
                progress(len(units), 0, "vocoder: reading")
    if not units:
        raise DataError("no recordings to train a vocoder on")
    return units, mels


def _averages(units: Sequence[NDArray[np.int64]], mels: Sequence[NDArray[np.float32]], config: VocoderConfig) -> Tensor:
    """(n_units, R * M); a unit that no recording has gets the average over all."""
    rows = torch.from_numpy(rearrange(np.concatenate(mels), "(u r) m -> u (r m)", r=config.frames_per_unit))
    ids = torch.from_numpy(np.concatenate(units))
    totals = torch.zeros(config.n_units, rows.shape[1]).index_add_(0, ids, rows)
    counts = torch.bincount(ids, minlength=config.n_units)[:, None]
    return torch.where(counts > 0, totals / counts.clamp(min=1), rows.mean(0))


def _fit(
    vocoder: UnitVocoder,
    units: Sequence[NDArray[np.int64]],
    mels: Sequence[NDArray[np.float32]],
    settings: TrainVocoder,
    seed: int,
    progress: Progress | None,
) -> None:
    config, draw = vocoder.config, np.random.default_rng(seed)
    length = max(1, round(settings.seconds * config.sample_rate / (config.hop * config.frames_per_unit)))
    # One row after the other, so that a piece is a slice; one that runs into the next recording does no harm.
    ids, frames = np.concatenate(units), np.concatenate(mels)
    length = min(length, len(ids))
    optimizer = torch.optim.AdamW(vocoder.parameters(), settings.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.steps + 1, pct_start=0.1)
    vocoder.train()
    for step in range(settings.steps):
        starts = draw.integers(0, len(ids) - length + 1, settings.batch)
        x = torch.from_numpy(np.stack([ids[at : at + length] for at in starts]))
        r = config.frames_per_unit
        y = torch.from_numpy(np.stack([frames[at * r : (at + length) * r] for at in starts]))
        loss = _loss(vocoder(x, settings.dropout), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vocoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, settings.steps, f"vocoder: loss {loss.item():.3f}, step")


@torch.no_grad()
def _match_variance(
    vocoder: UnitVocoder, units: Sequence[NDArray[np.int64]], mels: Sequence[NDArray[np.float32]]
) -> None:
    """Give each band the mean and spread that it has in recordings, as for parametric synthesis (Toda 2007)."""
    ours = np.concatenate([vocoder.mel(ids) for ids in units[:_COMPARED]])
    theirs = np.concatenate(mels[:_COMPARED])
    # A band that says nothing would be blown up from its own noise.
    gain = np.clip(theirs.std(axis=0) / np.maximum(ours.std(axis=0), 1e-3), 1.0, 1.5)
    vocoder.gain.copy_(torch.from_numpy(gain))
    vocoder.offset.copy_(torch.from_numpy(theirs.mean(axis=0) - gain * ours.mean(axis=0)))


def _loss(mel: Tensor, target: Tensor) -> Tensor:
    """L1 of the (B, T, M) frames, and of the change from one to the next."""
    return F.l1_loss(mel, target) + F.l1_loss(mel.diff(dim=1), target.diff(dim=1))
