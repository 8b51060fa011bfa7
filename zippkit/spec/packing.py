"""How a phase lays its examples into rows: one each, or several that share a row."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from zippkit.spec.kinds import Strict

PACK_LENGTH = 2048


class Packing(Strict):
    """Whether examples share rows, and how long those get."""

    pack: bool = Field(
        False,
        description="Several examples of a step share a row, in which each sees itself alone and its positions count "
        "from 0: the same losses and gradients from fewer padded tokens. Worth it on a GPU.",
    )
    pack_length: int = Field(
        PACK_LENGTH,
        gt=0,
        description="Of `pack`: most tokens of any tower in a row; a longer example makes longer rows.",
    )

    @model_validator(mode="after")
    def _packs(self) -> Self:
        # A recipe that was written out names every default.
        if self.pack_length != PACK_LENGTH and not self.pack:
            raise ValueError("`pack_length` is of `pack: true`; write that too, or remove it")
        return self

    @property
    def packs_to(self) -> int | None:
        """Most tokens in a row that examples share; None where each has its own."""
        return self.pack_length if self.pack else None
