"""Settings of the built-in links, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from zippkit.spec.kinds import DROPOUT, MAX_WIDTH, Acts, LinkConfig, TowerConfig

Placement = Literal["after", "before"]
_PLACEMENT = (
    "Act on the target's state after the layer that a site names, as Zipper does, or before it, as Flamingo does."
)
_NORM_SOURCE = (
    "RMSNorm on the source's states before the projection; its epsilon, as that of all norms of links, is torch's own: "
    "the smallest step of the states' dtype, 1.2e-7 in float32"
)


def _heads_misfit(n_heads: int, dim: int, rotary: bool) -> Iterator[str]:
    if dim % n_heads:
        yield f"n_heads {n_heads} does not divide the target's width {dim}"
    elif rotary and (dim // n_heads) % 2:
        yield f"rotary positions need an even head width, got {dim} / {n_heads} heads"


class AttendingConfig(LinkConfig):
    """Settings that every kind of cross-attention has."""

    n_heads: int = Field(8, gt=0, description="Attention heads; must divide the target's width.")
    placement: Placement = Field("after", description=_PLACEMENT)
    positions: Literal["rotary", "keys", "none"] = Field(
        "rotary",
        description="`rotary` rotates queries and keys by their position among their tower's own tokens, which learns "
        "fastest; `keys` rotates keys alone, by their position in their segment, so that a query can look for a place "
        "in a picture or a sound; `none` is the papers'.",
    )
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary frequencies.")
    pace: float = Field(
        1.0,
        gt=0,
        description="Target tokens per source token: 8 for speech that reads words, 0.125 for words that read speech. "
        "Of `positions: rotary`: what is said together has one position id, and is found sooner.",
    )
    norm_source: bool = Field(True, description=f"{_NORM_SOURCE}; the papers are silent.")
    dropout: float = Field(0.0, ge=0, lt=1, description=DROPOUT)

    @model_validator(mode="after")
    def _paced(self) -> Self:
        if self.pace != 1 and self.positions != "rotary":
            raise ValueError(f"`pace` is of `positions: rotary`, not of `{self.positions}`; remove it")
        return self

    @property
    def acts(self) -> Acts:
        """Where in the target's forward pass the link acts."""
        return "after_layer" if self.placement == "after" else "before_layer"

    def misfits(self, source: TowerConfig, target: TowerConfig) -> Iterator[str]:
        """Yield what does not fit between the link and its towers."""
        del source
        yield from _heads_misfit(self.n_heads, target.dim, self.positions != "none")


class GatedCrossAttentionConfig(AttendingConfig):
    """Gated cross-attention, then a gated feed-forward (Flamingo's block; Zipper, section 3)."""

    implementation: ClassVar[str] = "zippkit.model.links.gated_cross_attention:GatedCrossAttention"

    start: Literal["zero_outputs", "zero_gates"] = Field(
        "zero_outputs",
        description="How the link starts as the identity: gates open at tanh(1) over zero output projections, which "
        "learns fastest, or gates at 0, which is Flamingo's and the paper's.",
    )
    gate: Literal["scalar", "vector", "none"] = Field(
        "scalar", description="One gate for the whole state, one for each of its entries, or none."
    )
    gate_init: float | None = Field(
        None, description="Gates before their tanh, at the start of `zero_outputs`; 1 if left out."
    )
    ffn_mult: int = Field(4, gt=0, le=1024, description="Feed-forward width over the target's width.")

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        if self.start == "zero_gates" and self.gate == "none":
            raise ValueError("`start: zero_gates` needs gates; expected `gate: scalar` or `gate: vector`")
        if self.gate_init is not None and (self.start == "zero_gates" or self.gate == "none"):
            key = "start: zero_gates" if self.start == "zero_gates" else "gate: none"
            raise ValueError(f"gate_init is {self.gate_init:g}, but `{key}` leaves it no use; remove `gate_init`")
        if self.gate_init == 0:
            raise ValueError("gates of 0 over zero outputs never learn; write `start: zero_gates`, not `gate_init: 0`")
        return self

    @property
    def first_gate(self) -> float:
        """The gates' initial value, before their tanh."""
        return 0.0 if self.start == "zero_gates" else 1.0 if self.gate_init is None else self.gate_init


class CrossAttentionConfig(AttendingConfig):
    """Cross-attention that is added to the target's state (CALM, with `projection: {depth: 1}`)."""

    implementation: ClassVar[str] = "zippkit.model.links.cross_attention:CrossAttention"


class PrefixConfig(LinkConfig):
    """Stacks source tokens, projects them, and gives them places in the target's own sequence (SLAM-ASR, LLaVA)."""

    implementation: ClassVar[str] = "zippkit.model.links.prefix:Prefix"

    stack: int = Field(
        1,
        gt=0,
        le=MAX_WIDTH,
        description="Source tokens that one place is made of, side by side; the segment's begin and end ids are among "
        "them, and the last place is filled up with zeros.",
    )
    norm_source: bool = Field(True, description="RMSNorm on the source's states before they are stacked.")
    dropout: float = Field(0.0, ge=0, lt=1, description=DROPOUT)

    @property
    def acts(self) -> Acts:
        """Where in the target's forward pass the link acts."""
        return "embedding"

    def projected_dim(self, source_dim: int) -> int:
        """Width of the stacked tokens that are projected."""
        return self.stack * source_dim

    def n_slots(self, n_tokens: int) -> int:
        """Slots of a segment: one for each ``stack`` of its tokens."""
        return -(-n_tokens // self.stack)


class ResamplerConfig(LinkConfig):
    """Learned queries read each segment of the source; the target reads what they have become (BLIP-2, Flamingo)."""

    implementation: ClassVar[str] = "zippkit.model.links.resampler:Resampler"

    queries: int = Field(32, gt=0, le=MAX_WIDTH, description="Latents that a segment becomes, however long it is.")
    depth: int = Field(2, gt=0, le=1000, description="Layers of the resampler.")
    n_heads: int = Field(8, gt=0, description="Attention heads; must divide the target's width, which latents have.")
    ffn_mult: int = Field(4, gt=0, le=1024, description="Feed-forward width over the target's width.")
    design: Literal["perceiver", "qformer"] = Field(
        "perceiver",
        description="A layer's attention: one over source and latents together (Flamingo), or one among the latents "
        "and then one over the source (BLIP-2).",
    )
    output: Literal["prefix", "cross_attention"] = Field(
        "prefix",
        description="Latents take places in the target's own sequence, or the target's layers read them by gated "
        "cross-attention (`every` or `sites`; each site has queries of its own).",
    )
    placement: Placement = Field("after", description=f"{_PLACEMENT} Only for `output: cross_attention`.")
    positions: Literal["keys", "none"] = Field(
        "keys", description="Turn the source's keys by their place in their segment; `none` is the papers'."
    )
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary frequencies.")
    norm_source: bool = Field(True, description=f"{_NORM_SOURCE}.")
    dropout: float = Field(0.0, ge=0, lt=1, description=DROPOUT)

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if self.output == "prefix" and self.placement != "after":
            raise ValueError("`placement` is of `output: cross_attention`; a prefix acts at the embedding, remove it")
        if self.design == "qformer" and self.queries == 1:
            raise ValueError("a single query has no other to attend to; expected `design: perceiver` or more queries")
        return self

    @property
    def acts(self) -> Acts:
        """Where in the target's forward pass the link acts."""
        if self.output == "prefix":
            return "embedding"
        return "after_layer" if self.placement == "after" else "before_layer"

    @property
    def by_segment(self) -> bool:
        """Latents are of a whole segment."""
        return True

    def n_slots(self, n_tokens: int) -> int:
        """Slots of a segment: one for each latent."""
        del n_tokens
        return self.queries

    def misfits(self, source: TowerConfig, target: TowerConfig) -> Iterator[str]:
        """Yield what does not fit between the link and its towers."""
        del source
        yield from _heads_misfit(self.n_heads, target.dim, self.positions != "none")


class JointAttentionConfig(LinkConfig):
    """One attention over the tokens of both towers, each with its own weights (Mixture-of-Transformers, LMFusion)."""

    implementation: ClassVar[str] = "zippkit.model.links.joint_attention:JointAttention"
    projects: ClassVar[bool] = False

    @property
    def acts(self) -> Acts:
        """Where in the target's forward pass the link acts."""
        return "attention"
