"""A small unit configuration, and sounds to train it on."""

from __future__ import annotations

import numpy as np

from zippkit.data.audio import Wave
from zippkit.data.units import UnitConfig

SMALL = UnitConfig(sample_rate=8000, n_mels=20, n_fft=256, n_units=16)


def tone(seconds: float, seed: int, rate: int = 8000) -> Wave:
    """Steps of random pitch with a little noise: different enough for a small codebook."""
    rng = np.random.default_rng(seed)
    n_samples = round(seconds * rate)
    pitch = np.repeat(rng.uniform(100, 3000, n_samples // 800 + 1), 800)[:n_samples]
    wave = 0.4 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + rng.normal(0, 0.01, n_samples)
    return wave.astype(np.float32)
