"""The native decoder for one token of each row: its projections joined, its norms part of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.model.layers import at_least_float32
from zippkit.model.packed import Norm, Packed, attend_once, rotated
from zippkit.model.tower import Projected
from zippkit.model.visibility import Mask, Visibility

Remember = Callable[[int, Projected, Any], tuple[Tensor, Tensor, Mask]]
"""`zippkit.model.tower.SharedAttention.remember` of the tower."""


class LayerWeights(NamedTuple):
    """What a layer is made of."""

    norms: Sequence[nn.RMSNorm]
    """Before the attention, and before the feed-forward."""
    attention: Sequence[Tensor]
    """(D_out, D_in) of queries, keys, values and output."""
    mlp: Sequence[Tensor]
    """Of gate, up and down."""
    heads: tuple[int, int]
    """Of queries, and of keys and values."""


class LayerForm:
    """One layer: two norms, four products and the attention between them."""

    def __init__(self, weights: LayerWeights, blocked: bool) -> None:
        """Copy the weights; see `zippkit.model.packed.Packed`."""
        self.n_heads, self.n_kv_heads = weights.heads
        self.norm, self.inner_norm = (Norm(norm, weights.mlp[0].dtype) for norm in weights.norms)
        self.project = Packed(self.norm.after(weights.attention[:3]), blocked=blocked)
        self.output = Packed(weights.attention[3], blocked=blocked)
        self.gate_up = Packed(self.inner_norm.after(weights.mlp[:2]), blocked=blocked)
        self.down = Packed(weights.mlp[2], blocked=blocked)

    def __call__(self, x_BD: Tensor, index: int, context: Any, remember: Remember) -> Tensor:
        """States (B, D) after the layer."""
        n, n_kv = self.n_heads, self.n_kv_heads
        parts_BHK = self.project(self.norm(x_BD)).view(len(x_BD), n + 2 * n_kv, -1)
        turned_BHK = rotated(parts_BHK[:, : n + n_kv], context.angles)
        made = Projected(turned_BHK[:, :n], turned_BHK[:, n:, None], parts_BHK[:, n + n_kv :, None])
        keys, values, mask = remember(index, made, context)
        x_BD = self.output.onto(attend_once(made.queries, keys, values, _table(mask)), x_BD)
        gate, up = self.gate_up(self.inner_norm(x_BD)).chunk(2, dim=-1)
        return self.down.onto(F.silu(gate) * up, x_BD)


class DecoderForm:
    """All layers and the head of a decoder."""

    def __init__(
        self, layers: Sequence[LayerWeights], norm: nn.RMSNorm, head: Tensor, remember: Remember, blocked: bool
    ) -> None:
        """Copy the weights.

        Args:
            layers: of each layer.
            norm: the last one.
            head: (V, D).
            remember: the tower's own.
            blocked: see `zippkit.model.packed.Packed`.
        """
        self.dtype, self.remember = head.dtype, remember
        self.layers = [LayerForm(weights, blocked) for weights in layers]
        self.norm = Norm(norm, self.dtype)
        self.logits = Packed(self.norm.after([head]), blocked=blocked)

    def layer(self, index: int, hidden: Tensor, context: Any) -> Tensor:
        """Run layer ``index`` on (B, D) states."""
        return at_least_float32(self.layers[index](hidden.to(self.dtype), index, context, self.remember))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (B, V)."""
        return at_least_float32(self.logits(self.norm(hidden.to(self.dtype))))


def _table(mask: Mask) -> Tensor | None:
    return mask.table() if isinstance(mask, Visibility) else mask
