"""Low-rank adapters on a frozen tower's linear maps (LoRA, arXiv 2106.09685), beside the tower: its own keys stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn

from zippkit.errors import Problem, SpecError, some_of
from zippkit.model.linear import Linear, linear
from zippkit.model.part_group import PartGroup
from zippkit.model.tower import Tower
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.graph import Graph
from zippkit.plan.plan import Op
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.part_sections import Lora


class Adapter(nn.Module):
    """The low-rank addition to one linear map: ``alpha / rank * up(down(x))``, 0 at first."""

    def __init__(self, n_in: int, n_out: int, lora: Lora, transposed: bool) -> None:
        super().__init__()
        self.scale, self.transposed = lora.alpha / lora.rank, transposed
        self.down = nn.Parameter(torch.empty(lora.rank, n_in))
        self.up = nn.Parameter(torch.zeros(n_out, lora.rank))
        nn.init.normal_(self.down, std=n_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out), in float32."""
        # Adapters are float32, in towers of another dtype too.
        added: Tensor = self.scale * linear(linear(x.to(self.down.dtype), self.down), self.up)
        return added

    def change(self) -> Tensor:
        """The addition as a matrix, of the weight's shape."""
        change = self.scale * self.up @ self.down
        return change.T if self.transposed else change


class AdaptedLinear(Linear):
    """A tower's linear map, its parameters and their names, to which an adapter adds.

    The adapter is no child: its parameters stand under the model's ``adapters``, and the tower's keys stay its own.
    """

    adapter: Adapter

    def __init__(self, plain: nn.Linear, adapter: Adapter) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.training = plain.in_features, plain.out_features, plain.training
        self.weight, self.bias = plain.weight, plain.bias
        object.__setattr__(self, "adapter", adapter)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out), the adapter added."""
        mapped: Tensor = super().forward(input)
        return mapped + cast("Tensor", self.adapter(input)).to(mapped.dtype)

    def merged(self) -> Tensor:
        """The matrix (n_out, n_in) that, with the bias, computes the same; in the weight's dtype."""
        return self.weight + self.adapter.change().to(self.weight.dtype)


class AdaptedConv1D(nn.Module):
    """The same of transformers' Conv1D, a linear map whose weight is (in, out)."""

    adapter: Adapter

    def __init__(self, plain: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.weight, self.bias = cast("nn.Parameter", plain.weight), cast("nn.Parameter", plain.bias)
        self.nx, self.nf = self.weight.shape
        self.training = plain.training
        object.__setattr__(self, "adapter", adapter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out), the adapter added."""
        mapped = torch.addmm(self.bias, x.view(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)
        return mapped + cast("Tensor", self.adapter(x)).to(mapped.dtype)


def attach(tower: nn.Module, weights: Iterable[str], lora: Lora) -> nn.ModuleDict:
    """Give each of a tower's linear maps whose weight is named an adapter; keys have ``-`` for the names' dots.

    The map becomes one that knows its adapter, with the parameters that it has, wherever it stands in the tower.

    Raises:
        ValueError: names every weight that is not a linear map's, and those that the rank does not fit.
    """
    modules, wrong, found = dict(tower.named_modules()), [], dict[str, Adapter]()
    for name in weights:
        path, _, leaf = name.rpartition(".")
        shape = _shape(modules.get(path), leaf)
        kind = type(modules[path]).__name__ if leaf == "weight" else ""
        misfit = lora.misfit(name, None if shape is None else (shape[1], shape[0]), kind)
        if misfit:
            wrong.append(misfit)
        elif shape is not None:
            found[path] = Adapter(shape[0], shape[1], lora, transposed=shape[2])
    if wrong:
        raise ValueError(some_of(wrong))
    for path, adapter in found.items():
        _replace(tower, modules[path], adapter)
    return nn.ModuleDict({_key(path): adapter for path, adapter in found.items()})


def _replace(tower: nn.Module, plain: nn.Module, adapter: Adapter) -> None:
    adapted = AdaptedLinear(plain, adapter) if isinstance(plain, nn.Linear) else AdaptedConv1D(plain, adapter)
    for path in [path for path, module in tower.named_modules(remove_duplicate=False) if module is plain]:
        tower.set_submodule(path, adapted)


def _key(path: str) -> str:
    """A module's name may have no dots."""
    return path.replace(".", "-")


def _shape(module: nn.Module | None, leaf: str) -> tuple[int, int, bool] | None:
    """Inputs and outputs of a linear map, and whether its weight is (in, out), as transformers' Conv1D has it."""
    if leaf != "weight" or module is None:
        return None
    # A subclass may compute something else, or not be called at all (the last map of nn.MultiheadAttention).
    if type(module) is nn.Linear or type(module) is Linear:
        return module.in_features, module.out_features, False
    if type(module).__name__ == "Conv1D" and isinstance(weight := module.weight, Tensor):
        return weight.shape[0], weight.shape[1], True
    return None


class Adapters(PartGroup):
    """The adapters of each tower that owns its weights, by the paths of the maps that they add to."""

    @classmethod
    def build(cls, group: str, spec: CompositionSpec, graph: Graph, towers: Mapping[str, Tower]) -> Self:
        """Attach an adapter to every linear map that the spec's freeze rules call ``lora``.

        Raises:
            SpecError: a weight that is no linear map's, or that the rank does not fit.
        """
        del graph
        found: dict[str, nn.Module] = {}
        for name, tower in spec.towers.items():
            if tower.share_with is None:
                try:
                    lora, weights = tower.adapted(parameter for parameter, _ in towers[name].named_parameters())
                    adapters = attach(towers[name], weights, lora)
                except ValueError as error:
                    raise SpecError([Problem(f"towers.{name}", 0, "lora", str(error))]) from error
                found |= {name: adapters} if adapters else {}
        return cls(group, found)

    def around(self, tower: str, owner: str) -> bool:
        """A tower that shares its weights shares their adapters."""
        del tower
        return owner in self

    def trains(self, op: Op) -> bool:
        """Any operation of an adapted tower may use its maps."""
        del op
        return any(parameter.requires_grad for parameter in self.parameters())


def merged_state(model: ZippedModel, tower: str) -> dict[str, Tensor]:
    """A tower's state with its adapters added into the weights; it computes the same without them."""
    state = {name: tensor.detach().clone() for name, tensor in model.tower(tower).state_dict().items()}
    owner, group = model.owner(tower), model.groups["adapters"]
    adapters = cast("nn.ModuleDict", group[owner]) if owner in group else nn.ModuleDict()
    for path, _ in model.tower(tower).named_modules():
        if _key(path) in adapters:
            state[f"{path}.weight"] += cast("Adapter", adapters[_key(path)]).change().detach()
    return state
