"""A tower for small square images: the native decoder over grey levels, which knows its row and column."""

from __future__ import annotations

from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.model.tower import Exported
from zippkit_towers.decoder.tower import Cache, Context, Decoder
from zippkit_towers.image_units.config import ImageUnitsConfig


class ImageUnits(Decoder):
    """Images as runs of grey levels in raster order (as in Image GPT, Chen et al. 2020).

    A state is told the row and column of the pixel that it predicts: begin those of the first one.
    """

    Config = ImageUnitsConfig
    config: ImageUnitsConfig

    def __init__(self, config: ImageUnitsConfig) -> None:
        super().__init__(config)
        # One row more stands for everything behind the last pixel.
        self.embed_rows = nn.Embedding(config.side + 1, config.dim)
        self.embed_columns = nn.Embedding(config.side, config.dim)
        for embedding in (self.embed_rows, self.embed_columns):
            nn.init.normal_(embedding.weight, std=0.02)

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Cache | None = None) -> tuple[Tensor, Context]:
        """Embed the new tokens, with the row and column of the pixel that each of them predicts."""
        hidden, context = super().start(inputs, mask, cache)
        side = self.config.side
        place = inputs.offset.clamp(max=side * side)
        return hidden + self.embed_rows(place // side) + self.embed_columns(place % side), context

    def exported(self) -> Exported | None:
        """The image part of an exported model; None for subclasses."""
        if type(self) is not ImageUnits:
            return None
        return Exported("image_units", {**self.exported_settings(), "side": self.config.side})
