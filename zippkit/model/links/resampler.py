"""A resampler: learned queries read a segment, and the target reads the latents that they become.

BLIP-2 (arXiv 2301.12597); Flamingo (arXiv 2204.14198).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.model.layers import angles_of
from zippkit.model.links.base import Link, Memory
from zippkit.model.links.configs import GatedCrossAttentionConfig, ResamplerConfig
from zippkit.model.links.gated_cross_attention import GatedCrossAttention
from zippkit.model.links.prefix import entries, first_of_segment, pick, put
from zippkit.model.links.resampler_layers import LAYERS, Seen
from zippkit.model.sight import Sight
from zippkit.model.visibility import Visibility


class Resampler(Link):
    """Each segment of the source becomes ``queries`` latents, which are visible once the segment is complete.

    Latents start as the learned queries and go through layers (`resampler_layers`); then they take slots in the
    target's sequence, as of a `Prefix`, or the target reads them by a `GatedCrossAttention`.
    """

    Config = ResamplerConfig
    config: ResamplerConfig

    def __init__(self, config: ResamplerConfig, source_dim: int, target_dim: int, projection: nn.Module) -> None:
        super().__init__(config, source_dim, target_dim, projection)
        self.source_norm = nn.RMSNorm(source_dim) if config.norm_source else nn.Identity()
        self.queries = nn.Parameter(torch.randn(config.queries, target_dim))
        layer = LAYERS[config.design]
        sizes = (target_dim, config.n_heads, config.ffn_mult)
        self.layers = nn.ModuleList(layer(*sizes, config.dropout) for _ in range(config.depth))
        self.norm = nn.RMSNorm(target_dim)
        if config.output == "cross_attention":
            same = config.model_dump(include={"n_heads", "ffn_mult", "dropout"})
            reader = GatedCrossAttentionConfig(positions="none", norm_source=False, **same)
            self.reader = GatedCrossAttention(reader, target_dim, target_dim, nn.Identity())

    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        """Resample every segment, and keep the latents (B, L, D), L = N segments times ``queries``."""
        n, of = self.config.queries, (tokens.visible, tokens.segment)
        order_BL, segment_BL, seen = tokens.once(("resampled", n), of, lambda: resampled(tokens, n))
        angles = None
        if self.config.positions == "keys":
            width = self.target_dim // self.config.n_heads
            angles = angles_of(tokens, tokens.offset, width, self.config.rope_theta, source.dtype)
        projected_BSD = self.projection(self.source_norm(source))
        latents_BLD = self.queries.repeat(tokens.n_segments, 1).expand(len(source), -1, -1)
        for layer in self.layers:
            latents_BLD = layer(latents_BLD, projected_BSD, seen, angles)
        latents_BLD = self.norm(latents_BLD)
        if self.config.output == "prefix":
            return Memory(order_BL, (latents_BLD, segment_BL))
        return self.reader.write(latents_BLD, replace(TowerBatch.alone(order_BL), visible=order_BL))

    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        """Fill the inserted slots with latents, or attend to them."""
        if self.config.output == "cross_attention":
            return self.reader.read(target, tokens, memory)
        latents_BLD, segment_BL = entries(memory)
        index_BT1 = (first_of_segment(tokens, segment_BL) + tokens.offset)[:, :, None]
        found_BT1D, there_BT1 = pick(latents_BLD, segment_BL, tokens, index_BT1)
        return put(target, found_BT1D[:, :, 0], there_BT1)


def resampled(tokens: TowerBatch, n: int) -> tuple[Tensor, Tensor, Seen]:
    """Describe ``n`` latents for each segment of a row: L = N segments times ``n``.

    Returns:
        (B, L) order from which each is visible, (B, L) its segment, both -1 where a row has fewer segments, and what
        it attends to.
    """
    rank_BS = rank_of_segment(tokens)
    order_BL, segment_BL = (
        rank_BS.new_full((len(rank_BS), tokens.n_segments + 1), -1)
        .scatter_reduce(1, rank_BS + 1, column.to(rank_BS.dtype), "amax")[:, 1:]
        .repeat_interleave(n, dim=1)
        for column in (tokens.visible, tokens.segment)
    )
    ranks = torch.arange(tokens.n_segments, device=rank_BS.device).repeat_interleave(n)
    rank_BL = ranks.to(rank_BS.dtype).expand(len(rank_BS), -1)
    source, latents = (Sight(rank_BL + 1, key, rank_BL) for key in (rank_BS, rank_BL))
    return order_BL, segment_BL, Seen(Visibility([source]), Visibility([latents]), Visibility([source, latents]))


def rank_of_segment(tokens: TowerBatch) -> Tensor:
    """Number the row's own segments from 0, (B, S); -1 at padding and at inserted slots."""
    own_BS = (tokens.visible >= 0) & ~tokens.inserted
    first_BS = own_BS & (tokens.offset == 0)
    return torch.where(own_BS, first_BS.long().cumsum(dim=1) - 1, -1)
