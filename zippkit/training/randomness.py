"""What a step draws is a pure function of (seed, phase, step), so that a run resumes without any state to save."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from zippkit.training.backends import Backend


@contextmanager
def drawn_for(seed: int, phase: str, step: int, device: Backend, rank: int = 0) -> Iterator[None]:
    """Draw dropout, and whatever else is random, anew for a step; what others draw goes on afterwards as before."""
    whose = f" {rank}" if rank else ""
    digest = hashlib.sha256(f"{seed} {phase} {step}{whose}".encode()).digest()
    with device.seeded(int.from_bytes(digest[:8], "big") >> 1):
        yield
