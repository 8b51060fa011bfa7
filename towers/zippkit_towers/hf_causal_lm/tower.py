"""Decoders of Hugging Face transformers, run layer by layer with their own masks, positions, scalings and caches.

Transformers' own modules do the work. What its ``forward`` does between them is done here: embedding scales, rotary
angles for each type of layer, sliding windows, caps and scales of logits. Whether that is right is checked against the
model's own ``forward`` whenever a tower is built (`zippkit_towers.hf_causal_lm.parity`). Parameters carry the names of
the model's checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.batch.batch import TowerBatch
from zippkit.model.linear import linear
from zippkit.model.tower import Exported
from zippkit_towers.hf_causal_lm.cache import Slots, empty_slots
from zippkit_towers.hf_causal_lm.config import HfCausalLmConfig
from zippkit_towers.hf_causal_lm.modules import DecoderModules
from zippkit_towers.hf_causal_lm.parity import check_parity
from zippkit_towers.hf_causal_lm.routing import recorded
from zippkit_towers.hf_causal_lm.settings import layer_kinds, scale_of
from zippkit_towers.hf_causal_lm.transformers_model import quiet_settings


@dataclass(frozen=True)
class Context:
    """Shared inputs of all layers in one forward pass."""

    masks: dict[int | None, Tensor | None]
    """By window; (B, 1, T, S), or None for plain causal."""
    angles: dict[str, Any]
    """By type of layer."""
    positions: Tensor
    cache: Slots | None
    routed: list[Tensor] | None = None
    """The logits (B * T, n_experts) of each router so far, where they are asked for."""


class HfCausalLm(DecoderModules[Slots, Context]):
    """Any causal language model of transformers whose layers can be run one by one, exactly."""

    def __init__(self, config: HfCausalLmConfig) -> None:
        super().__init__(config)
        self.eager = self.hf._attn_implementation == "eager"
        if self.balance is not None:
            self.router_weight = float(config.model.get("router_aux_loss_coef") or 0.0)

    def check(self) -> None:
        """Compare the logits with transformers' own forward.

        Raises:
            CheckpointError: they differ, or the model cannot be run layer by layer.
        """
        check_parity(self)

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Slots | None = None) -> tuple[Tensor, Context]:
        """Embed the new tokens; return the states (B, T, D) at depth 0 and what the layers need besides them."""
        hidden = self.part("embedding")(inputs.tokens) * scale_of(self.hf, "embedding_multiplier")
        angles: dict[str, Any] = {}
        if self.parts.rotary:
            rotary = self.part("rotary")
            for kind in set(self._kinds()):
                angles[kind] = rotary(hidden, inputs.position_ids, *((kind,) if kind else ()))
        if cache is not None:
            cache.slots, cache.n_slots = inputs.slots, cast("Tensor", mask).shape[-1]
        # Without a cache, slots are places in the row, which several documents may share.
        n_new = inputs.tokens.shape[1]
        places = torch.arange(n_new, device=hidden.device)[None] if cache is None else inputs.positions
        keys = None if inputs.branches is None else inputs.branches.positions
        masks = {window: self._mask(mask, window, places, keys, hidden) for window in set(self.windows)}
        hidden = self.placed(hidden, inputs)
        if self.parts.embedding_norm:
            hidden = self.part("embedding_norm")(hidden)
        trained = self.router_weight > 0 and any(p.requires_grad for p in self.parameters())
        routed: list[Tensor] | None = [] if trained and cache is None else None
        return hidden, Context(masks, angles, inputs.position_ids, cache, routed)

    def _kinds(self) -> list[str]:
        """The key of each layer's rotary angles."""
        n_layers = self.config.n_layers
        return layer_kinds(self.hf, n_layers) if self.parts.angles_by_kind else [""] * n_layers

    def _mask(
        self, mask: Tensor | None, window: int | None, places: Tensor, keys: Tensor | None, hidden: Tensor
    ) -> Tensor | None:
        """(B, 1, T, S) mask of layers with this window: bool, or added to the scores where attention is eager.

        Args:
            mask: (B, T, S) without a window; None is plain causal.
            window: how many places back a token sees, its own included.
            places: (B, T) of the tokens.
            keys: (B, S) of what they see; None: they count from 0.
            hidden: (B, T, D) states.
        """
        n = hidden.shape[1]
        if mask is None and (self.eager or (window is not None and window < n)):
            mask = torch.ones(n, n, dtype=torch.bool, device=hidden.device).tril().expand(len(hidden), n, n)
        if mask is None:
            return None
        if window is not None and window < mask.shape[-1]:
            keys = torch.arange(mask.shape[-1], device=hidden.device)[None] if keys is None else keys
            mask = mask & (places[:, :, None] - keys[:, None, :] < window)
        if self.eager:
            lowest = torch.finfo(hidden.dtype).min
            return torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, lowest)[:, None]
        return mask[:, None]

    def placed(self, states: Tensor, inputs: TowerBatch) -> Tensor:
        """Add the learned positions, of a model that has them, to states (B, T, D) from elsewhere."""
        if not self.parts.positions:
            return states
        learned = self.part("positions")
        # OPT and its kin leave the first rows of the table to padding; and padding counts on, past the last position.
        at = inputs.position_ids + getattr(learned, "offset", 0)
        moved: Tensor = states + F.embedding(at.clamp(max=learned.num_embeddings - 1), learned.weight)
        return moved

    def layer_modules(self) -> Sequence[nn.Module]:
        """The model's own layers."""
        return list(self.part("layers"))

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        """Run layer ``index`` on (B, T, D) states."""
        known: dict[str, Any] = {
            "attention_mask": context.masks[self.windows[index]],
            "position_ids": context.positions,
            "use_cache": context.cache is not None,
        }
        if self.parts.rotary:
            known["position_embeddings"] = context.angles[self._kinds()[index]]
        known["alibi"] = None
        given = {name: value for name, value in known.items() if name in self.parts.takes}
        if context.cache is not None:
            given[self.parts.cache] = context.cache
        layer = self.part("layers")[index]
        with recorded(self.balance, layer, context.routed):
            out = layer(hidden, **given)
        states: Tensor = out[0] if isinstance(out, tuple) else out
        return states

    def router_loss(self, inputs: TowerBatch, context: Context) -> Tensor | None:
        """Transformers' own load-balancing loss over the real tokens; None where no router was recorded."""
        if not context.routed or self.balance is None:
            return None
        return self.balance.loss(tuple(context.routed), (inputs.order >= 0).to(context.routed[0]))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (B, T, V), with the final norm, scales and cap of the model."""
        if self.parts.norm:
            hidden = self.part("norm")(hidden)
        logits: Tensor = linear(hidden, self.part("embedding").weight) if self.tied else self.part("head")(hidden)
        logits = logits * scale_of(self.hf, "logit_scale") / scale_of(self.hf, "logits_scaling")
        cap = getattr(self.hf, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def exported(self) -> Exported | None:
        """The same modules of transformers, run by the same rules; None for subclasses."""
        if type(self) is not HfCausalLm:
            return None
        parts = ("embedding", "layers", "norm", "head", "rotary", "positions", "embedding_norm")
        settings = {
            "model": quiet_settings(self.config),
            "attention": self.hf._attn_implementation,
            "parts": {name: getattr(self.parts, name) for name in parts},
            "takes": sorted(self.parts.takes),
            "cache": self.parts.cache,
            "tied": self.tied,
            "windows": self.windows,
            "kinds": self._kinds(),
            "embedding_scale": scale_of(self.hf, "embedding_multiplier"),
            "logit_scale": scale_of(self.hf, "logit_scale") / scale_of(self.hf, "logits_scaling"),
            "logit_cap": getattr(self.hf, "final_logit_softcapping", None),
        }
        return Exported("hf_causal_lm", settings)

    def new_cache(self, batch_size: int, max_len: int) -> Slots:
        """An empty cache of ``max_len`` slots in each row."""
        config = self.config
        return empty_slots(self.hf, config.n_layers, config.dim, self.part("embedding").weight, batch_size, max_len)

    def reorder_cache(self, cache: Slots, rows: Tensor) -> Slots:
        """A cache of its own with these (N,) rows."""
        return cache.picked(rows)
