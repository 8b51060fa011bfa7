"""Splits of a corpus that has none of its own: drawn from what is said, so that the same words stay together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from zippkit.data.records import SPLITS
from zippkit.spec.kinds import Strict

FRACTIONS = {"train": 0.9, "dev": 0.05, "test": 0.05}
USUAL = {"validation": "dev", "valid": "dev", "val": "dev", "eval": "dev", "training": "train"}
"""What other people call splits, and what zippkit does."""


def named_split(name: str) -> str | None:
    """The split that a file or folder of this name says it is; None if it is no split's name."""
    name = USUAL.get(name, name)
    return name if name.partition("-")[0] in SPLITS else None


class DrawnSplits(Strict):
    """Options of a reader that draws the splits."""

    fractions: dict[str, float] = Field(
        default_factory=lambda: dict(FRACTIONS), description="Split to its share; the shares add up to 1."
    )
    seed: int = Field(0, description="Another seed draws other splits.")

    @field_validator("fractions", mode="before")
    @classmethod
    def _shares(cls, fractions: Any) -> Any:
        if fractions is None:
            return dict(FRACTIONS)
        shares = list(fractions.values()) if isinstance(fractions, Mapping) else []
        if shares and all(isinstance(share, int | float) for share in shares):
            if not np.isclose(sum(shares), 1):
                raise ValueError(f"fractions add up to {sum(shares):g}, expected 1")
            if min(shares) < 0:
                raise ValueError("a fraction is negative")
        return fractions

    def split_of(self, said: str) -> str:
        """The split of something with these words; case and punctuation are nothing to it."""
        words = " ".join(re.findall(r"\w+", said.casefold()))
        digest = hashlib.sha256(f"{self.seed} {words}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        for split, fraction in self.fractions.items():
            place -= fraction
            if place < 0:
                return split
        return list(self.fractions)[-1]  # rounding left a little over
