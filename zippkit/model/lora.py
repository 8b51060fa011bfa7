"""Low-rank adapters on a frozen tower's linear maps (LoRA, arXiv 2106.09685), beside the tower: its own keys stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.composition_spec import Lora


class Adapter(nn.Module):
    """What is added to one linear map: ``alpha / rank * up(down(x))``, 0 at first.

    It acts as a forward hook of the map that keeps nothing between calls, so the map needs no wrapper and no copy.
    """

    def __init__(self, n_in: int, n_out: int, lora: Lora, transposed: bool) -> None:
        super().__init__()
        self.scale, self.transposed = lora.alpha / lora.rank, transposed
        self.down = nn.Parameter(torch.empty(lora.rank, n_in))
        self.up = nn.Parameter(torch.zeros(n_out, lora.rank))
        nn.init.normal_(self.down, std=n_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.scale * F.linear(F.linear(x, self.down), self.up)
        return added

    def hook(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Add to what the map gave."""
        del module
        added: Tensor = self(inputs[0])
        return output + added

    def change(self) -> Tensor:
        """What the weight would have to change by, of the weight's shape."""
        change = self.scale * self.up @ self.down
        return change.T if self.transposed else change


def attach(tower: nn.Module, weights: Iterable[str], lora: Lora) -> nn.ModuleDict:
    """Give each of a tower's linear maps whose weight is named an adapter; keys have ``-`` for the names' dots.

    Raises:
        ValueError: names every weight that is not a linear map's, and those that the rank does not fit.
    """
    modules, wrong, found = dict(tower.named_modules()), [], dict[str, Adapter]()
    for name in weights:
        path, _, leaf = name.rpartition(".")
        shape = _shape(modules.get(path), leaf)
        if shape is None:
            wrong.append(f"{name!r} is not the weight of a linear map")
        elif lora.rank > min(shape[:2]):
            wrong.append(f"rank {lora.rank} is larger than a side of {name!r}, {shape[1]} x {shape[0]}")
        else:
            found[path] = Adapter(shape[0], shape[1], lora, transposed=shape[2])
    if wrong:
        raise ValueError("; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""))
    for path, adapter in found.items():
        modules[path].register_forward_hook(adapter.hook)
    return nn.ModuleDict({_key(path): adapter for path, adapter in found.items()})


def _key(path: str) -> str:
    """A module's name may have no dots."""
    return path.replace(".", "-")


def _shape(module: nn.Module | None, leaf: str) -> tuple[int, int, bool] | None:
    """Inputs and outputs of a linear map, and whether its weight is (in, out), as transformers' Conv1D has it."""
    if leaf != "weight" or module is None:
        return None
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features, False
    if type(module).__name__ == "Conv1D" and isinstance(weight := module.weight, Tensor):
        return weight.shape[0], weight.shape[1], True
    return None


def merged_state(model: ZippedModel, tower: str) -> dict[str, Tensor]:
    """A tower's state with its adapters added into the weights; it computes the same without them."""
    state = {name: tensor.detach().clone() for name, tensor in model.tower(tower).state_dict().items()}
    owner = model.owner(tower)
    adapters = cast("nn.ModuleDict", model.adapters[owner]) if owner in model.adapters else nn.ModuleDict()
    for path, _ in model.tower(tower).named_modules():
        if _key(path) in adapters:
            state[f"{path}.weight"] += cast("Adapter", adapters[_key(path)]).change().detach()
    return state
