"""What every rank runs in a step: the same operations, whatever its own rows hold, so that none waits for another.

A collective is begun by all ranks or never ends. So ranks tell each other, before each step, which towers, outputs and
links their rows ask for; each runs what any of them needs, over padding where it has no such row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from zippkit.batch.batch import Batch, TowerBatch
from zippkit.batch.blank import blank, nothing
from zippkit.model.loss import Counts, Share
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.graph import Graph
from zippkit.training.parallel import World


class Agreed(NamedTuple):
    """What the ranks agreed on."""

    batches: list[Batch]
    """This rank's, with padding for towers that only others have."""
    stop: bool
    """Whether any rank was asked to stop."""


def agree(world: World, graph: Graph, batches: Sequence[Batch | None], stop: bool = False) -> Agreed:
    """Bring the batches of a step to one plan on all ranks.

    Args:
        world: the ranks; each gives as many batches.
        graph: of the composition.
        batches: this rank's parts of the step; None for one in which it has no row.
        stop: whether this rank was asked to stop.
    """
    given = [batch or nothing() for batch in batches]
    if world.size == 1:
        return Agreed(given, stop)
    facts = [_facts(batch, list(graph.towers)) for batch in given]
    told = world.sum(torch.tensor([stop, *chain.from_iterable(facts)], dtype=torch.int64)).gt(0).tolist()
    rows = [told[1 + i * len(facts[0]) : 1 + (i + 1) * len(facts[0])] for i in range(len(facts))]
    agreed = [_completed(batch, graph, row) for batch, row in zip(given, rows, strict=True)]
    return Agreed(agreed, told[0])


def _facts(batch: Batch, names: Sequence[str]) -> list[bool]:
    """Rows that are declared multimodal, and others; towers, outputs, and who sees whom."""
    declared = torch.as_tensor(batch.multimodal)
    some, others = bool(declared.any()), not bool(declared.all())
    rows = [some and bool(batch.towers), others and bool(batch.towers)]
    towers = [name in batch.towers for name in names]
    outputs = [name in batch.outputs for name in names]
    sees = [(one, other) in batch.sees for one in names for other in names]
    return [*rows, *towers, *outputs, *sees]


def _completed(batch: Batch, graph: Graph, told: Sequence[bool]) -> Batch:
    """The batch as all ranks run it."""
    names, n = list(graph.towers), len(graph.towers)
    some, others, told = told[0], told[1], told[2:]
    size = batch.size if batch.towers else 1
    there = [name for name, is_there in zip(names, told[:n], strict=True) if is_there]
    towers = {name: batch.towers.get(name) or blank(name, graph.towers, graph.layout, size) for name in there}
    outputs = tuple(name for name, asked in zip(names, told[n : 2 * n], strict=True) if asked)
    pairs = ((one, other) for one in names for other in names)
    sees = frozenset(pair for pair, seen in zip(pairs, told[2 * n :], strict=True) if seen)
    multimodal: Tensor | bool = some
    if some and others:
        declared = torch.as_tensor(batch.multimodal)
        multimodal = declared.expand(size) if declared.dim() == 0 else declared
    return replace(batch, towers=towers, outputs=outputs, sees=sees, multimodal=multimodal)


def with_targets_placed(batch: Batch, multiple: int) -> Batch:
    """As `Batch.with_places`, with one place at least: a head without any would have no gradient, not even of zero."""
    placed = batch.with_places(multiple)
    return replace(placed, towers={name: _one_at_least(tokens) for name, tokens in placed.towers.items()})


def _one_at_least(tokens: TowerBatch) -> TowerBatch:
    if tokens.places is None or len(tokens.places):
        return tokens
    return replace(tokens, places=tokens.places.new_full((1,), -1))


def shares(world: World, model: ZippedModel, batches: Sequence[Batch]) -> list[Share | None]:
    """What each batch of this rank is of the step of all ranks; None where it is all of it."""
    if world.size == 1 and len(batches) == 1:
        return [None]
    counts = [model.counts(batch) for batch in batches]
    step = _summed(world, Counts.sum(counts))
    return [Share(each, step) for each in counts]


def _summed(world: World, whole: Counts) -> Counts:
    """The counts of all ranks; in the same order on each."""
    if world.size == 1:
        return whole
    both: dict[str, Mapping[str, Tensor]] = {"tokens": whole.tokens, "others": whole.others}
    values = [value for each in both.values() for value in each.values()]
    total = iter(world.sum(torch.stack(values)).unbind() if values else ())
    tokens, others = ({name: next(total) for name in each} for each in both.values())
    return Counts(tokens, others, whole.n_batches * world.size)
