"""Settings of the built-in links, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from zippkit.config import Acts, LinkConfig, TowerConfig


class GatedCrossAttentionConfig(LinkConfig):
    """Gated cross-attention, then a gated feed-forward (Flamingo's block; Zipper, section 3)."""

    implementation: ClassVar[str] = "zippkit.links.gated_cross_attention:GatedCrossAttention"

    n_heads: int = Field(8, gt=0, description="Attention heads; must divide the target's width.")
    start: Literal["zero_outputs", "zero_gates"] = Field(
        "zero_outputs",
        description="How the link starts as the identity: gates open at tanh(1) over zero output projections, which "
        "learns fastest, or gates at 0, which is Flamingo's and the paper's.",
    )
    positions: Literal["rotary", "none"] = Field(
        "rotary",
        description="Rotate queries and keys by their place among their tower's own tokens, which learns fastest; "
        "`none` is the paper's.",
    )
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary frequencies.")
    ffn_mult: int = Field(4, gt=0, description="Feed-forward width over the target's width.")
    norm_source: bool = Field(
        True, description="RMSNorm on the source's states before the projection; the paper is silent."
    )

    def misfits(self, source: TowerConfig, target: TowerConfig) -> Iterator[str]:
        del source
        if target.dim % self.n_heads:
            yield f"n_heads {self.n_heads} does not divide the target's width {target.dim}"
        elif self.positions == "rotary" and (target.dim // self.n_heads) % 2:
            yield f"rotary positions need an even head width, got {target.dim} / {self.n_heads} heads"


class PrefixConfig(LinkConfig):
    """Stacks source tokens, projects them, and gives them places in the target's own sequence (SLAM-ASR, LLaVA)."""

    implementation: ClassVar[str] = "zippkit.links.prefix:Prefix"

    stack: int = Field(1, gt=0, description="Source tokens that one place is made of, side by side.")
    norm_source: bool = Field(True, description="RMSNorm on the source's states before they are stacked.")

    @property
    def acts(self) -> Acts:
        return "embedding"

    def projected_dim(self, source_dim: int) -> int:
        return self.stack * source_dim

    def places(self, n_tokens: int) -> int:
        return -(-n_tokens // self.stack)


class JointAttentionConfig(LinkConfig):
    """One attention over the tokens of both towers, each with its own weights (Mixture-of-Transformers, LMFusion)."""

    implementation: ClassVar[str] = "zippkit.links.joint_attention:JointAttention"
    projects: ClassVar[bool] = False

    @property
    def acts(self) -> Acts:
        return "attention"
