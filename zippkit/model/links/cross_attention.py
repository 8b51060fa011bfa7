"""Plain cross-attention, added to the target's state (CALM, arXiv 2401.02412, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.model.links.attending import Attending, where_seen
from zippkit.model.links.attending_form import AttendingForm, can_fold
from zippkit.model.links.base import LinkForm, Memory
from zippkit.model.links.configs import CrossAttentionConfig


class CrossAttention(Attending):
    """Plain cross-attention without gate and feed-forward.

    For a target state u and a source state s, with a linear projection F (`projection: {depth: 1}`)::

        h = u + W_O Attn(norm(u), F(norm(s)))

    and h = u on blind positions. CALM starts W_O at random, which disturbs the target at step 0; here it starts at
    zero. CALM tells of no norms and of no positions (`norm_source: false, positions: none`).
    """

    Config = CrossAttentionConfig
    config: CrossAttentionConfig

    def __init__(self, config: CrossAttentionConfig, source_dim: int, target_dim: int, projection: nn.Module) -> None:
        super().__init__(config, source_dim, target_dim, projection)
        nn.init.zeros_(self.output.weight)

    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        """Compute h, (B, T, D)."""
        found_BTD, sees_BT1 = self.attend_to_memory(target, tokens, memory)
        return where_seen(sees_BT1, target + found_BTD, target)

    def decoding_form(self, blocked: bool) -> LinkForm | None:
        """The link for one token of each row; see `zippkit.model.links.base.HasLinkForm`."""
        own = type(self).read is CrossAttention.read and can_fold(self)
        return AttendingForm(self, blocked=blocked) if own else None
