"""Settings of the tower for small square images of grey levels."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from zippkit.spec.kinds import MAX_IDS
from zippkit_towers.decoder.config import DecoderConfig


class ImageUnitsConfig(DecoderConfig):
    """A decoder over grey levels in raster order; what is left out follows from ``side`` and ``levels``."""

    implementation: ClassVar[str] = "zippkit_towers.image_units.tower:ImageUnits"

    side: int = Field(8, gt=0, le=4096, description="Rows, and columns, of an image.")
    levels: int = Field(
        17, gt=1, le=2**16, description="Grey levels: ids 0 (no ink) to levels - 1; begin and end come after them."
    )
    vocab_size: int = Field(19, gt=0, le=MAX_IDS, description="Number of token ids; levels + 2 if left out.")
    max_len: int | None = Field(
        1056, gt=0, description="Longest sequence of this tower's own tokens; room for 16 images if left out."
    )

    @model_validator(mode="before")
    @classmethod
    def _follows(cls, given: Any) -> Any:
        """Vocabulary, frame and room as levels and side have them, where the config does not say."""
        if not isinstance(given, dict):
            return given
        levels, side = given.get("levels", 17), given.get("side", 8)
        if type(levels) is not int or type(side) is not int:
            return given  # Told by the fields themselves.
        frame = {"begin": levels, "end": levels + 1}
        return {"vocab_size": levels + 2, "frame": frame, "max_len": 16 * (side * side + 2)} | given

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if self.vocab_size < self.levels:
            raise ValueError(f"vocab_size {self.vocab_size} has no room for {self.levels} levels")
        return self

    def parameter_names(self) -> list[str]:
        """Names of all parameters."""
        return [*super().parameter_names(), "embed_rows.weight", "embed_columns.weight"]
