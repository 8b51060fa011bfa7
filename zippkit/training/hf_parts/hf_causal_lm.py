"""A decoder of transformers, whose own layers are run one at a time, so that links can act between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from zippkit.training.hf_parts.sequence import Memory, Tokens


class HfCausalLm(nn.Module):
    """The modules of a causal language model of transformers; ``settings["parts"]`` says where each of them is."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings, self.parts = settings, settings["parts"]
        config = AutoConfig.for_model(**settings["model"])
        whole = AutoModelForCausalLM.from_config(config, attn_implementation=settings["attention"])
        for name, child in whole.named_children():
            # A head that is nothing but the embedding's weight is left out.
            if not (settings["tied"] and name == self.parts["head"]):
                self.add_module(name, child)

    def part(self, name: str) -> Any:
        """The module that plays a part."""
        return self.get_submodule(self.parts[name])

    def embed(self, tokens: Tokens) -> Tensor:
        """States (B, T, D) at depth 0."""
        hidden: Tensor = self.part("embedding")(tokens.ids) * self.settings["embedding_scale"]
        hidden = self.placed(hidden, tokens)
        if self.parts["embedding_norm"]:
            hidden = self.part("embedding_norm")(hidden)
        return hidden

    def placed(self, states: Tensor, tokens: Tokens) -> Tensor:
        """Add learned positions, of a model that has them, to states (B, T, D)."""
        if not self.parts["positions"]:
            return states
        learned = self.part("positions")
        at = tokens.position_ids + getattr(learned, "offset", 0)
        out: Tensor = states + F.embedding(at.clamp(max=learned.num_embeddings - 1), learned.weight)
        return out

    def layer(
        self, index: int, hidden: Tensor, tokens: Tokens, cache: DynamicCache, others: Sequence[Memory] = ()
    ) -> Tensor:
        """Run layer ``index`` (from 0) on the new tokens' states (B, T, D)."""
        del others
        given: dict[str, Any] = {
            "attention_mask": self._mask(tokens, self.settings["windows"][index], hidden.dtype),
            "position_ids": tokens.position_ids,
            "use_cache": True,
            "alibi": None,
        }
        if self.parts["rotary"]:
            # Models whose layers differ have rotary angles for each kind of layer.
            kind = self.settings["kinds"][index]
            given["position_embeddings"] = self.part("rotary")(hidden, tokens.position_ids, *([kind] if kind else []))
        given = {name: value for name, value in given.items() if name in self.settings["takes"]}
        out = self.part("layers")[index](hidden, **given, **{self.settings["cache"]: cache})
        return cast("Tensor", out[0] if isinstance(out, tuple) else out)

    def _mask(self, tokens: Tokens, window: int | None, dtype: torch.dtype) -> Tensor:
        """(B, 1, T, S): bool, or what is added to the scores where attention is written out."""
        mask = tokens.mask(window)
        if self.settings["attention"] != "eager":
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (B, T, V), with the final norm, scale and cap of the model."""
        if self.parts["norm"]:
            hidden = self.part("norm")(hidden)
        tied = self.settings["tied"]
        logits: Tensor = F.linear(hidden, self.part("embedding").weight) if tied else self.part("head")(hidden)
        logits = logits * self.settings["logit_scale"]
        cap = self.settings["logit_cap"]
        return logits if cap is None else cap * torch.tanh(logits / cap)
