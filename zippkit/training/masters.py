"""Weights in bfloat16 while a step runs, and their float32 masters, which the optimiser changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zippkit.model.lora import AdaptedConv1D, AdaptedLinear
from zippkit.model.zipped_model import ZippedModel

_MAPS = ("Linear", "Conv1D", AdaptedLinear.__name__, AdaptedConv1D.__name__)
"""Modules whose weight autocast would round at every use. Subclasses may compute something else with it."""


class Masters:
    """The trained weights of linear maps: in bfloat16 inside `narrow`, and in float32 at any other time.

    Autocast rounds these weights, and no others, so a step computes what it computes with autocast alone. Embeddings
    stay float32, since the gradients of a token's places would be added up in bfloat16.
    """

    def __init__(self, model: ZippedModel | None = None) -> None:
        """Prepare the trained weights of a model; without one, no weight has a master."""
        self._masters: dict[nn.Parameter, nn.Parameter] = {}
        self._narrow: dict[nn.Parameter, Tensor] = {}
        if model is None:
            return
        embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if type(module).__name__ not in _MAPS or not isinstance(weight, nn.Parameter) or weight in embeddings:
                continue
            if weight.requires_grad:
                self._masters[weight] = nn.Parameter(weight.detach())
                self._narrow[weight] = weight.detach().to(torch.bfloat16)
        for tower in map(model.tower, model.towers):
            if any(parameter in self._masters for parameter in tower.parameters()):
                tower.computes = torch.float32

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """What the optimiser changes instead of a parameter: its master, or itself."""
        return self._masters.get(parameter, parameter)

    @contextmanager
    def narrow(self) -> Iterator[None]:
        """Hold the weights in bfloat16."""
        for parameter, master in self._masters.items():
            parameter.data = self._narrow[parameter].copy_(master.detach())
        try:
            yield
        finally:
            for parameter, master in self._masters.items():
                parameter.grad = None
                parameter.data = master.detach()

    def collect(self) -> None:
        """Add the gradients of the weights to those of their masters, in float32."""
        for parameter, master in self._masters.items():
            if parameter.grad is not None:
                grad = parameter.grad.to(torch.float32)
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                parameter.grad = None
