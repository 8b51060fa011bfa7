"""What a step draws is a pure function of (seed, phase, step), so that a run resumes without any state to save."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawn_for(seed: int, phase: str, step: int, device: torch.device, rank: int = 0) -> Iterator[None]:
    """Draw dropout, and whatever else is random, anew for a step; what others draw goes on afterwards as before."""
    whose = f" {rank}" if rank else ""
    digest = hashlib.sha256(f"{seed} {phase} {step}{whose}".encode()).digest()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield
