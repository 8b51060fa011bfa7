"""This rank's parts of what FSDP2 splits: weights, gradients and the optimiser's state, in parts and whole.

The optimiser never sees a DTensor. It is given this rank's part of each parameter, as a parameter of its own in the
same memory, so that every optimiser of torch does what it does in one process, at its speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from zippkit.model.contrastive import ContrastiveLosses
from zippkit.model.pieces import Held, is_split, piece
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.parallel import Parallel
from zippkit.training.fsdp import brought_together, fsdp_units, split
from zippkit.training.masters import Masters
from zippkit.training.parallel import World


class Shards:
    """The parameters of a model as the ranks hold them; in one process, all of them as they are."""

    def __init__(
        self,
        model: ZippedModel,
        world: World,
        parallel: Parallel | None = None,
        spec: CompositionSpec | None = None,
        *,
        narrow: bool = False,
    ) -> None:
        """Split a model that holds its values, if there are several ranks and they are to hold parts.

        Args:
            model: on its device.
            world: the ranks.
            parallel: what each of them holds.
            spec: of the model.
            narrow: run in bfloat16 what the optimiser keeps in float32.

        Raises:
            ZippkitError: as of `zippkit.training.fsdp.split`.
        """
        self.model, self.world = model, world
        self._parts: dict[nn.Parameter, nn.Parameter] = {}
        """This rank's part of each split parameter that is trained."""
        self.are_split = world.size > 1 and parallel is not None and parallel.shard != "none"
        """Whether FSDP2 holds the model in parts."""
        self._narrow = narrow
        self.masters = Masters(model if narrow and not self.are_split else None)
        if contrastive := model.groups.get("contrastive"):
            cast("ContrastiveLosses", contrastive).across = world.rows
        if self.are_split and parallel is not None and spec is not None:
            split(model, spec, world, parallel, narrow=narrow)
            for parameter in model.parameters():
                if parameter.requires_grad and is_split(parameter):
                    self._parts[parameter] = nn.Parameter(cast("Any", parameter.detach()).to_local())
        self._names = {name: p for name, p in model.named_parameters() if p in self._parts}

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """What the optimiser changes instead of a parameter: this rank's part, its master, or itself."""
        return self._parts[parameter] if parameter in self._parts else self.masters.of(parameter)

    @contextmanager
    def narrow(self) -> Iterator[None]:
        """Hold the weights as the step runs with them."""
        with self.masters.narrow():
            yield

    def collect(self) -> None:
        """After each backward pass: hand its gradients on to what the optimiser changes."""
        self.masters.collect()

    def clip(self, parameters: Iterable[nn.Parameter], most: float) -> Tensor:
        """Bring the step's gradients together, and clip them by their norm over all ranks, which is returned."""
        own = list(parameters)
        if self.world.size == 1:
            return torch.nn.utils.clip_grad_norm_(own, most)
        for parameter, part in self._parts.items():
            part.grad = None if parameter.grad is None else cast("Any", parameter.grad).to_local()
            parameter.grad = None
        parts = {id(part) for part in self._parts.values()}
        alike = [p.grad for p in own if p.grad is not None and id(p) not in parts]
        self._sum(alike)
        split = [p.grad for p in own if p.grad is not None and id(p) in parts]
        norm = (self._squares(split, over=True) + self._squares(alike)).sqrt()
        grads = [*alike, *split]
        torch._foreach_mul_(grads, (most / (norm + 1e-6)).clamp(max=1.0).to(grads[0]))
        return norm

    def _sum(self, grads: list[Tensor]) -> None:
        """Add up over ranks the gradients of what every rank holds, in one message."""
        if grads:
            flat = self.world.sum(torch.cat([grad.flatten() for grad in grads]))
            for grad, total in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
                grad.copy_(total.view_as(grad))

    def _squares(self, grads: list[Tensor], over: bool = False) -> Tensor:
        """The sum of squares of gradients; of parts, over all ranks that hold others."""
        device = next(self.model.parameters()).device
        norms = torch.stack(torch._foreach_norm(grads)) if grads else torch.zeros(1, device=device)
        total = norms.square().sum()
        return self.world.sum(total) / self._n_alike if over else total

    @property
    def _n_alike(self) -> int:
        """Ranks that hold the same part."""
        mesh = next((cast("Any", parameter).device_mesh for parameter in self._parts), None)
        return 1 if mesh is None or mesh.ndim == 1 else int(mesh.size(0))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Hold the whole model on every rank, so that each may run what it likes: evaluation and generation.

        Weights that steps run in bfloat16 are so here, too.
        """
        device = next(self.model.parameters()).device.type
        with (
            brought_together(fsdp_units(self.model) if self.are_split else ()),
            torch.autocast(device, dtype=torch.bfloat16, enabled=self._narrow and self.are_split),
        ):
            yield

    def dealt(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The optimiser's state (``<parameter>:<state>``), of which each rank has its part, as tensors they share."""
        return {
            key: _as_split(value, like) if (like := self._like(key, value.dim())) is not None else value
            for key, value in states.items()
        }

    def taken(self, states: Mapping[str, Held]) -> dict[str, Tensor]:
        """This rank's parts of an optimiser's whole state, which may be mapped from a file: only they are read."""
        whole = cast("Mapping[str, Tensor]", states)
        return {
            key: piece(like).of(value).clone() if (like := self._like(key, value.dim())) is not None else value
            for key, value in whole.items()
        }

    def _like(self, key: str, n_dims: int) -> nn.Parameter | None:
        """The split parameter as which a state is split; None where it is whole."""
        return self._names.get(key.rpartition(":")[0]) if n_dims else None


def _as_split(part: Tensor, like: nn.Parameter) -> Tensor:
    """This rank's part as one of a tensor of a parameter's shape."""
    from torch.distributed.tensor import DTensor

    given = cast("DTensor", like)
    return DTensor.from_local(part, given.device_mesh, given.placements, shape=like.shape, stride=like.stride())
