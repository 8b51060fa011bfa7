"""A program: a step of one of many ranks under FSDP2, and as JSON what it holds and sends; the others are pretended."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import zippkit
from zippkit.report.division import ROOT, Division, units_of
from zippkit.report.sizes import example_batches
from zippkit.spec.composition_spec import CompositionSpec

KINDS = {"c10d::_allgather_base_": "all_gather", "c10d::_reduce_scatter_base_": "reduce_scatter"}


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [each for inner in value for each in tensors(inner)] if isinstance(value, (list, tuple)) else []


class Wire(TorchDispatchMode):
    """Notes each collective and the bytes of its larger side."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in KINDS:
            self.sent.append((KINDS[name], max(each.nbytes for each in tensors(list(args)))))
        return func(*args, **(kwargs or {}))


def step(spec: CompositionSpec, division: Division, lengths: tuple[int, int]) -> dict[str, Any]:
    zipped = zippkit.compile(spec)
    model = zipped.model.train()
    _, batches = example_batches(spec, None, *lengths)
    ((_, batch),) = batches.items()
    parts = units_of(model, division)
    dist.init_process_group("fake", rank=0, world_size=division.ranks, store=FakeStore())
    mesh = init_device_mesh("cpu", (division.ranks,))
    alone = {p for p in model.parameters() if not p.dim() or not (p.requires_grad or division.shard == "all")}
    for part in parts:
        if part.name != ROOT and not alone.issuperset([*part.trained.values(), *part.frozen.values()]):
            module = model.get_submodule(part.name)
            fully_shard(module, mesh=mesh, ignored_params=alone)
            for method in ("write", "read"):
                if hasattr(module, method):
                    register_fsdp_forward_method(module, method)
    fully_shard(model, mesh=mesh, ignored_params=alone)
    held = sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in model.parameters())
    with Wire() as wire:
        zipped.loss(model(batch), batch)["total"].backward()  # type: ignore[no-untyped-call]
    sums: Counter[str] = Counter()
    for kind, n_bytes in wire.sent:
        sums[kind] += n_bytes
    dist.destroy_process_group()
    return {"held": held, "n": Counter(kind for kind, _ in wire.sent), "bytes": sums}


def main() -> None:
    given, lengths, *divisions = map(json.loads, sys.argv[1:])
    spec = CompositionSpec.model_validate(given)
    print(json.dumps([step(spec, Division(**division), tuple(lengths)) for division in divisions]))


if __name__ == "__main__":
    main()
