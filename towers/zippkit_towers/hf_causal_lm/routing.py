"""Mixtures of experts: the logits of their routers, transformers' load-balancing loss, and experts token by token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from zippkit_towers.hf_causal_lm.settings import size_of

_TOKEN_BY_TOKEN = "zippkit_token_by_token"
"""Name under which transformers finds the way of running experts that `token_by_token` registers."""


@dataclass(frozen=True)
class Balance:
    """How unevenly a model's routers deal tokens out to experts (arXiv 2101.03961), as transformers computes it."""

    router: type[nn.Module]
    index: int
    """Index of the logits (B * T, n_experts) among a router's outputs."""
    function: Any
    n_experts: int
    n_chosen: int

    def loss(self, logits: tuple[Tensor, ...], real: Tensor) -> Tensor:
        """One number, of the logits of all routers, over the (B, T) tokens where ``real`` is 1."""
        found: Tensor = self.function(logits, self.n_experts, self.n_chosen, real)
        return found


def balance_of(whole: Any) -> Balance | None:
    """Of a whole model of transformers; None where transformers has no such loss for it."""
    function = getattr(import_module(type(whole).__module__), "load_balancing_loss_func", None)
    recorder: Any = (getattr(whole, "_can_record_outputs", None) or {}).get("router_logits")
    sizes: list[Any] = [getattr(whole, name, None) for name in ("num_experts", "num_experts_per_tok")]
    if function is None or not hasattr(recorder, "target_class") or not all(type(size) is int for size in sizes):
        return None
    return Balance(recorder.target_class, recorder.index, function, *sizes)


@contextmanager
def recorded(balance: Balance | None, layer: nn.Module, routed: list[Tensor] | None) -> Iterator[None]:
    """While a layer runs, add the logits of its routers to ``routed``; nothing stays at the layer."""
    if routed is None or balance is None:
        yield
        return

    def keep(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
        routed.append(outputs[balance.index])

    hooks = [module.register_forward_hook(keep) for module in layer.modules() if isinstance(module, balance.router)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def token_by_token(model: nn.Module, hf: Any) -> str:
    """From here on, run the experts of a model token by token; return in words what is run in another way than usual.

    Args:
        model: holds the experts.
        hf: its config.
    """
    experts: list[Any] = [module for module in model.modules() if hasattr(module, "_is_expert_parallel")]
    if not experts:
        many = max(size_of(hf, name) for name in ("num_local_experts", "num_experts", "n_routed_experts"))
        return "experts that multiply all rows at once, whose last bits depend on each other" if many > 1 else ""
    interface = import_module("transformers.integrations.moe").ALL_EXPERTS_FUNCTIONS
    interface.register(_TOKEN_BY_TOKEN, _each_token_alone)
    for module in experts:
        module.config._experts_implementation = _TOKEN_BY_TOKEN
    return "its experts token by token"


def _each_token_alone(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Outputs (N, D) of the experts for (N, D) tokens, each token alone.

    Args:
        experts: transformers' module.
        hidden: (N, D) states.
        chosen: (N, k) experts of each token.
        weights: (N, k) their weights.
    """
    run = type(experts).forward.__wrapped__
    parts = (slice(i, i + 1) for i in range(len(hidden)))
    return torch.cat([run(experts, hidden[part], chosen[part], weights[part]) for part in parts])
