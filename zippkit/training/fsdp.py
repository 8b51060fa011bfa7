"""Where FSDP2 cuts a model: which modules are brought together for each of their calls, and what stays whole.

A unit is a module whose parameters are brought together when it is called, and let go of afterwards. Units are the
layers of towers that name them (`Tower.layer_modules`) and the sites of links; the model itself is the last one, for
what several of its operations use: embeddings, heads, norms, adapters, projections that sites share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zippkit.errors import ZippkitError
from zippkit.model.links.base import Memory
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.parallel import Parallel
from zippkit.spec.words import Place
from zippkit.training.parallel import World


def split(
    model: ZippedModel,
    spec: CompositionSpec,
    world: World,
    parallel: Parallel,
    *,
    narrow: bool = False,
) -> None:
    """Split a model that holds its values.

    Args:
        model: on its device.
        spec: of the model, which may say where its towers' weights are.
        world: the ranks.
        parallel: what each of them holds.
        narrow: run in bfloat16 what is kept in float32; gradients are added up in float32.

    Raises:
        ZippkitError: as many replicas do not divide the ranks, or a tower that cannot be split as the spec says.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    from torch.export import register_dataclass

    if world.size % parallel.replicas:
        raise ZippkitError(f"parallel.replicas: {parallel.replicas} do not divide {world.size} ranks")
    shape = (parallel.replicas, world.size // parallel.replicas)
    policy = MixedPrecisionPolicy(
        # Autocast rounds what comes in by itself.
        param_dtype=torch.bfloat16 if narrow else None,
        reduce_dtype=torch.float32 if narrow else None,
        cast_forward_inputs=False,
    )
    whole = _whole(model, spec, parallel)
    if narrow:
        # Norms and gates compute in float32, as they do beside weights in bfloat16 in one process.
        whole |= {p for p in model.parameters() if p.dim() < 2 and p.requires_grad}
    sizes, names = (shape, ("replicas", "parts")) if shape[0] > 1 else (shape[1:], ("parts",))
    how: dict[str, Any] = {"mesh": init_device_mesh(world.device, sizes, mesh_dim_names=names), "mp_policy": policy}
    if not getattr(Memory, "is_known_to_torch", False):
        register_dataclass(Memory)
        Memory.is_known_to_torch = True  # type: ignore[attr-defined]
    units = dict(_units(model, spec, parallel))
    often = Counter(p for unit in units for p in dict.fromkeys(unit.parameters()))
    shared = {p for p, n in often.items() if n > 1}
    for unit, methods in units.items():
        if any(p not in whole and p not in shared for p in unit.parameters()):
            fully_shard(unit, ignored_params=whole | shared, **how)
            for name in methods:
                register_fsdp_forward_method(unit, name)
    fully_shard(model, ignored_params=whole, **how)
    for unit in fsdp_units(model):
        # Each rank's loss is its part of the whole step's, so gradients are sums.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    if narrow:
        for tower in map(model.tower, model.towers):
            if any(p.requires_grad for p in tower.parameters()):
                tower.computes = torch.float32


def _placed(model: ZippedModel, spec: CompositionSpec, parallel: Parallel, name: str) -> tuple[Place, Place]:
    """Where a tower's trained weights are, and its frozen ones."""
    section = spec.towers[model.owner(name)]
    return parallel.place_of(section.place, trained=True), parallel.place_of(section.place, trained=False)


def _whole(model: ZippedModel, spec: CompositionSpec, parallel: Parallel) -> set[nn.Parameter]:
    """Parameters that every rank holds: as the recipe and the spec say, and numbers, which cannot be split."""
    inside = {p for tower in model.towers.values() for p in tower.parameters()}
    found = {p for p in model.parameters() if p.dim() == 0}
    found |= {p for p in model.parameters() if p not in inside and not p.requires_grad and parallel.shard != "all"}
    for name in model.towers:
        trained, frozen = _placed(model, spec, parallel, name)
        for parameter in model.tower(name).parameters():
            if (trained if parameter.requires_grad else frozen) == "replicate":
                found.add(parameter)
    return found


def _units(
    model: ZippedModel, spec: CompositionSpec, parallel: Parallel
) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Modules that are brought together one at a time, and which of their methods are called besides ``forward``."""
    inside = {(op.tower, op.depth) for op in model.plan.ops if op.kind == "project"}
    for name in model.towers:
        if "per_layer" not in _placed(model, spec, parallel, name):
            continue
        layers = model.tower(name).layer_modules()
        if not layers and spec.towers[model.owner(name)].place == "per_layer":
            kind = spec.towers[model.owner(name)].kind
            raise ZippkitError(
                f"towers.{name}.place: a tower of kind {kind!r} does not say which modules are its layers "
                "(Tower.layer_modules), so they cannot be brought together one by one; expected root or replicate"
            )
        for i, layer in enumerate(layers, 1):
            yield layer, ("project", "close") if (name, i) in inside else ()
    for site in {op.site: None for op in model.plan.ops if op.site is not None}:
        yield model.link(site), ("write", "read")


def fsdp_units(model: nn.Module) -> list[Any]:
    """The modules that FSDP2 brings together one by one."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def brought_together(units: Iterable[Any]) -> Iterator[None]:
    """Hold everything whole on every rank, so that each runs what it likes."""
    units = list(units)
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not units[0], recurse=False)
            unit.reshard()
