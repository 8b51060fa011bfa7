"""A decoder over the grey levels of small square images, which knows its row and column."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zippkit.training.hf_parts.decoder import Decoder
from zippkit.training.hf_parts.sequence import Tokens


class ImageUnits(Decoder):
    """Images as runs of grey levels in raster order; a state is told the row and column of the pixel it predicts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.side = settings["side"]
        # One row more stands for everything behind the last pixel.
        self.embed_rows = nn.Embedding(self.side + 1, settings["dim"])
        self.embed_columns = nn.Embedding(self.side, settings["dim"])

    def embed(self, tokens: Tokens) -> Tensor:
        """States (B, T, D) at depth 0."""
        place = tokens.offset.clamp(max=self.side * self.side)
        out: Tensor = self.embed_rows(place // self.side) + self.embed_columns(place % self.side)
        return super().embed(tokens) + out
