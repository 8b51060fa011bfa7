"""Links with cross-attention for one token of each row: norms and gates are part of the weights."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.batch.batch import TowerBatch
from zippkit.model.layers import angles_of
from zippkit.model.links.attending import Attending
from zippkit.model.links.base import Memory
from zippkit.model.packed import Norm, Packed, attend_once, is_wide, matrices_of, rotated, stays


class Reading(NamedTuple):
    """A memory as it is attended to."""

    keys: Tensor
    """(B, H, S, K)"""
    values: Tensor
    """(B, H, S, K)"""
    mask: Tensor | None
    """(B, 1, S) bool; None where every row sees everything."""
    sees: Tensor | None
    """(B, 1) bool: the row sees something; None where every row does."""


class AttendingForm:
    """``a = u + tanh(g) W_O Attn(norm(u))``, and the identity in rows that see nothing."""

    def __init__(self, link: Attending, gate: Tensor | None = None, blocked: bool = True) -> None:
        """Copy the weights.

        Args:
            link: whose they are.
            gate: () or (D,) what the attention's output is multiplied with; None is 1.
            blocked: see `zippkit.model.packed.Packed`.
        """
        self.config, dtype = link.config, link.query.weight.dtype
        self.norm = Norm(link.attention_norm, dtype)
        self.query = Packed(self.norm.after([link.query.weight]), blocked=blocked)
        self.output = Packed(scaled(link.output.weight, gate), blocked=blocked)

    def prepare(self, memory: Memory, n_slots: int | None) -> Reading:
        """Lay out keys and values; what a memory holds stands before every token that is still to come."""
        keys_BSHK, values_BSD = memory.tensors
        seen = memory.order >= 0
        if n_slots is not None:
            return self._fixed(keys_BSHK, values_BSD, seen, n_slots - seen.shape[1])
        ragged = not bool(seen.all())
        any_key = seen.any(dim=1, keepdim=True)
        mask = (seen | ~any_key)[:, None] if ragged else None
        values = values_BSD.view(*values_BSD.shape[:2], self.config.n_heads, -1)
        blind = seen.shape[1] == 0 or (ragged and not bool(any_key.all()))
        return Reading(_by_head(keys_BSHK), _by_head(values), mask, any_key if blind else None)

    def _fixed(self, keys_BSHK: Tensor, values_BSD: Tensor, seen: Tensor, n_more: int) -> Reading:
        """Filled up by ``n_more`` entries that nobody sees."""
        values = values_BSD.view(*values_BSD.shape[:2], self.config.n_heads, -1)
        keys, values = (_by_head(F.pad(x, (0, 0, 0, 0, 0, n_more))) for x in (keys_BSHK, values))
        any_key, seen = seen.any(dim=1, keepdim=True), F.pad(seen, (0, n_more))
        return Reading(stays(keys), stays(values), stays((seen | ~any_key)[:, None]), stays(any_key))

    def attend(self, target: Tensor, tokens: TowerBatch, found: Reading) -> Tensor:
        """The state (B, D) behind the attention."""
        config = self.config
        queries = self.query(self.norm(target)).view(len(target), config.n_heads, -1)
        if config.positions == "rotary":
            width, theta = queries.shape[-1], config.rope_theta
            queries = rotated(queries, angles_of(tokens, tokens.positions, width, theta, queries.dtype))
        return self.output.onto(attend_once(queries, found.keys, found.values, found.mask), target)

    def read(self, target: Tensor, tokens: TowerBatch, prepared: Reading) -> Tensor:
        """Rewrite target states (B, D)."""
        return where_seen(prepared, self.attend(target, tokens, prepared), target)


class GatedForm(AttendingForm):
    """`AttendingForm`, then ``h = a + tanh(g_f) W_2 gelu(W_1 norm(a))``."""

    def __init__(
        self,
        link: Attending,
        norm: nn.RMSNorm,
        inner: nn.Sequential,
        gates: tuple[Tensor | None, Tensor | None],
        blocked: bool = True,
    ) -> None:
        """Copy the weights.

        Args:
            link: whose they are.
            norm: before the feed-forward.
            inner: the feed-forward, two maps around a GELU.
            gates: of attention and feed-forward, () or (D,) each; None is 1.
            blocked: see `zippkit.model.packed.Packed`.
        """
        super().__init__(link, gates[0], blocked)
        first, last = (cast("nn.Linear", inner[i]) for i in (0, 2))
        self.inner_norm = Norm(norm, last.weight.dtype)
        self.up = Packed(self.inner_norm.after([first.weight]), first.bias, blocked)
        self.down = Packed(scaled(last.weight, gates[1]), scaled(last.bias, gates[1]), blocked)

    def read(self, target: Tensor, tokens: TowerBatch, prepared: Reading) -> Tensor:
        """Rewrite target states (B, D)."""
        attended = self.attend(target, tokens, prepared)
        rewritten = self.down.onto(self.up.gelu(self.inner_norm(attended)), attended)
        return where_seen(prepared, rewritten, target)


def can_fold(link: Attending) -> bool:
    """Whether a link's weights can take up its norms and gates."""
    plain = matrices_of([link.query, link.key, link.value, link.output]) is not None
    return plain and len({p.dtype for p in link.parameters()}) == 1 and is_wide(link.query.weight.dtype)


def scaled(weight: Tensor, gate: Tensor | None) -> Tensor:
    """A map (D, D_in), or its bias (D,), whose output is multiplied with a gate."""
    if gate is None:
        return weight
    return weight * (gate[:, None] if gate.dim() and weight.dim() == 2 else gate)


def where_seen(found: Reading, rewritten: Tensor, target: Tensor) -> Tensor:
    """Rows that see something; the others keep the target's own, to the last bit."""
    return rewritten if found.sees is None else torch.where(found.sees, rewritten, target)


def _by_head(x_BSHK: Tensor) -> Tensor:
    return x_BSHK.transpose(1, 2).contiguous()
