"""Low-rank adapters beside the linear maps of a frozen tower (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AdaptedLinear(nn.Linear):
    """A linear map ``W x + b`` to which ``scale * up(down(x))`` is added; the adapter is float32 in any tower."""

    def __init__(self, plain: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = plain.in_features, plain.out_features, scale
        self.weight, self.bias = plain.weight, plain.bias
        self.down = nn.Parameter(torch.zeros(rank, plain.in_features, dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(plain.out_features, rank, dtype=torch.float32))

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out)."""
        mapped = super().forward(input)
        added = self.scale * F.linear(F.linear(input.to(self.down.dtype), self.down), self.up)
        return mapped + added.to(mapped.dtype)


class AdaptedConv1D(nn.Module):
    """The same of transformers' Conv1D, a linear map whose weight is (n_in, n_out)."""

    def __init__(self, plain: nn.Module, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight, self.bias = cast("nn.Parameter", plain.weight), cast("nn.Parameter", plain.bias)
        self.nx, self.nf = self.weight.shape
        self.down = nn.Parameter(torch.zeros(rank, self.nx, dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(self.nf, rank, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out)."""
        mapped = torch.addmm(self.bias, x.view(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)
        added = self.scale * F.linear(F.linear(x.to(self.down.dtype), self.down), self.up)
        return mapped + added.to(mapped.dtype)


def adapt(tower: nn.Module, settings: dict[str, Any]) -> None:
    """Put adapters beside the tower's maps that ``settings`` names; its own weights keep their names."""
    for path in settings["maps"]:
        plain = tower.get_submodule(path)
        kind = AdaptedLinear if isinstance(plain, nn.Linear) else AdaptedConv1D
        tower.set_submodule(path, kind(cast("Any", plain), settings["rank"], settings["alpha"] / settings["rank"]))
