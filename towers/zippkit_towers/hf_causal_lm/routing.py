"""Routers of mixtures of experts: what they say, and transformers' own loss that tells them to be even."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Balance:
    """How unevenly a model's routers deal tokens out to experts (arXiv 2101.03961), as transformers computes it."""

    router: type[nn.Module]
    index: int
    """Which of a router's outputs are its logits (B * T, n_experts)."""
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
