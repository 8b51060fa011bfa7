"""What each rank of certificate C6 does: a few steps of the trainer, beside the same ones of a process by itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zippkit.batch.batch import Batch, Segment
from zippkit.composition import Composition, load
from zippkit.evaluation.certificates.probe import draws_for, layouts, orders
from zippkit.evaluation.certificates.report import some
from zippkit.model.loss import Share
from zippkit.model.pieces import is_split
from zippkit.model.weights import module_state
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.parallel import Parallel
from zippkit.spec.phase import Phase
from zippkit.training.agreement import agree, shares, with_targets_placed
from zippkit.training.device import CPU
from zippkit.training.optimizer import build_optimizer, optimizer_tensors
from zippkit.training.parallel import World, open_world
from zippkit.training.sharding import Shards
from zippkit.training.step import build_step

TOLERANCE = 1e-5
"""Of a loss, and of the largest entry of a moment or a weight."""
FLOOR = 1e-8
"""Differences below it are rounding, however small the numbers are."""
PHASE = Phase(steps=9, learning_rate=1e-3)

Row = list[Segment]
Numbers = dict[str, Tensor]


def deals(zipped: Composition, size: int) -> list[list[list[Row]]]:
    """For each step, the rows of each rank: as they come, by modality, and none for the last rank."""
    draws = draws_for(zipped)
    alone = [[name] for name in draws.modalities if draws.is_predicted(name)]
    mixed = [*orders(zipped, rounds=1), *alone, *layouts(list(draws.modalities)[:2], rounds=1)]
    rows = [row for names in mixed if (row := draws.row(names)) and any(draws.is_predicted(s.tower) for s in row)]
    rows = (rows * size)[: max(len(rows), 2 * size)]
    kind = sorted(rows, key=lambda row: sorted({segment.tower for segment in row}))
    cut = [round(i * len(kind) / size) for i in range(size + 1)]
    by_kind = [kind[a:b] for a, b in pairwise(cut)]
    without = [rows[rank :: max(1, size - 1)] if rank < max(1, size - 1) else [] for rank in range(size)]
    return [[rows[rank::size] for rank in range(size)], by_kind, without]


def _batch(zipped: Composition, rows: Sequence[Row]) -> Batch | None:
    several = [len({segment.tower for segment in row}) > 1 for row in rows]
    return zipped.collate(rows, multimodal=several) if rows else None


def learnt(zipped: Composition, world: World, parallel: Parallel, size: int, *, agreeing: bool) -> Numbers:
    """Losses, the optimiser's moments and the weights after the steps, whole.

    Args:
        zipped: a composition of its own, which is trained.
        world: the ranks; one by itself takes the rows of all.
        parallel: what each rank holds.
        size: number of ranks to which rows are dealt.
        agreeing: whether the ranks agree on what a step runs.
    """
    model = zipped.model.double().eval()
    for name in model.towers:
        model.tower(name).router_weight = 0.0
    shards = Shards(model, world, parallel, zipped.spec)
    optimizer = build_optimizer(model, learning_rates(zipped.spec, PHASE), PHASE, shards)
    step = build_step(model, optimizer, PHASE, CPU(), shards)
    found: Numbers = {}
    for i, dealt in enumerate(deals(zipped, size)):
        rows = dealt[world.rank] if world.size > 1 else [row for each in dealt for row in each]
        batches, parts = _brought_to_one_plan(zipped, world, _batch(zipped, rows), agreeing=agreeing)
        values = step(*batches, shares=parts)
        norm = values.pop("gradient_norm")
        told = world.sums({name: float(value) for name, value in values.items()})
        found |= {f"step {i + 1}: {name}": torch.tensor(value) for name, value in told.items()}
        found[f"step {i + 1}: gradient norm"] = norm
    moments = shards.dealt(optimizer_tensors(optimizer))
    found |= {f"moment {name}": _whole(each) for name, each in moments.items()}
    return found | {f"weight {name}": _whole(tensor).clone() for name, tensor in module_state(model).items()}


def _whole(tensor: Tensor) -> Tensor:
    """A tensor of which each rank holds rows, brought together; all of them must ask."""
    there: Any = tensor
    found: Tensor = there.full_tensor() if is_split(tensor) else tensor
    return found


def _brought_to_one_plan(
    zipped: Composition, world: World, batch: Batch | None, *, agreeing: bool
) -> tuple[list[Batch], Sequence[Share | None]]:
    if not agreeing:
        return ([batch] if batch else []), [None] * (batch is not None)
    batches = agree(world, zipped.graph, [batch]).batches
    if world.size > 1:
        batches = [with_targets_placed(each, 1) for each in batches]
    return batches, shares(world, zipped.model, batches)


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[str, float]:
    """What differs, in words, and the largest difference relative to the largest entry."""
    off: dict[str, float] = {}
    for name in expected.keys() | found.keys():
        if name not in expected or name not in found:
            off[name] = float("inf")
            continue
        one, other = expected[name].double(), found[name].double()
        largest = max(float(one.abs().max()) if one.numel() else 0.0, FLOOR / TOLERANCE)
        off[name] = float((one - other).abs().max()) / largest if one.numel() else 0.0
    wrong = sorted((name for name, each in off.items() if not each <= TOLERANCE), key=lambda name: -off[name])
    return some([f"{name} (by {off[name]:.1g})" for name in wrong]) if wrong else "", max(off.values())


def _main(folder: Path, *, agreeing: bool) -> None:
    torch.set_num_threads(1)
    wrong: list[str] = []
    worst, n = 0.0, 0
    with open_world("cpu") as world:
        for shard in ("none", "trained", "all"):
            parallel = Parallel(shard=_how(shard))
            found = learnt(load(folder / "model"), world, parallel, world.size, agreeing=agreeing)
            if world.leads:
                expected = learnt(load(folder / "model"), World(), Parallel(), world.size, agreeing=True)
                told, off = differences(expected, found)
                wrong += [f"with shard: {shard}, {told}"] if told else []
                worst, n = max(worst, off), len(expected)
        if world.leads:
            said = (
                f"{n} losses, moments and weights, with nothing, trained and all weights in parts, off by {worst:.1g}"
            )
            (folder / "found.json").write_text(json.dumps({"wrong": "; ".join(wrong), "said": said}))


def _how(shard: str) -> Literal["none", "trained", "all"]:
    return "all" if shard == "all" else "trained" if shard == "trained" else "none"


if __name__ == "__main__":
    _main(Path(sys.argv[1]), agreeing=sys.argv[2] == "1")
