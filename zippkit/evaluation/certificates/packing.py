"""C5: packed loss and gradients equal the unpacked ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from zippkit.batch.batch import IGNORE, Batch, Segment
from zippkit.composition import Composition
from zippkit.evaluation.certificates.probe import draws_for, kept_apart, orders, randomize_zero_inits
from zippkit.evaluation.certificates.report import RefutedError, some
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.registry import LINKS, TOWERS, kinds

TOLERANCE = 1e-6
"""Of the loss, and of a parameter's largest gradient."""
FLOOR = 1e-6
"""Gradients smaller than this part of the largest of all are compared as if they were as large: they are sums of larger
ones, whose rounding they have."""
LENGTHS = (24, 10_000)
"""Rows of a few documents, and of all."""

Learnt = tuple[dict[str, Tensor], dict[str, Tensor]]


@torch.enable_grad()
def packed_equals_unpacked(zipped: Composition) -> str:
    """Certificate C5: documents in all orders of modalities, in rows of their own and in rows that they share.

    On a copy in float64 in which no parameter is zero, so that what differs is no rounding. Packing is a choice, and
    towers and links of other packages need not keep to the mask of documents: `zippkit train` refuses to pack them.

    Raises:
        RefutedError: names the losses and gradients that differ, or the counts.
    """
    if zipped.spec.contrastive:
        return "a contrastive loss compares rows, so documents of this composition share none, and `pack` is refused"
    try:
        return _proved(zipped)
    except RefutedError as error:
        others = _of_other_packages(zipped)
        if not others:
            raise
        return f"not for {some(others)}, so `pack` is refused: {error}"


def _of_other_packages(zipped: Composition) -> list[str]:
    """Towers and links whose kinds zippkit does not bring itself."""
    own = {group: {k.name for k in kinds(group) if k.package == "zippkit"} for group in (TOWERS, LINKS)}
    towers = [name for name, tower in zipped.spec.towers.items() if tower.kind not in own[TOWERS]]
    return [*towers, *(link.label for link in zipped.spec.links if link.kind not in own[LINKS])]


def _proved(zipped: Composition) -> str:
    model = copy.deepcopy(zipped.model).eval().double()
    randomize_zero_inits(model)
    how = kept_apart(model)
    draws = draws_for(zipped)
    alone = [[name] for name in draws.modalities if draws.is_predicted(name)]
    names = [*orders(zipped), *orders(zipped, rounds=1), *alone]
    documents = [row for row in (draws.row(each) for each in names) if row]
    apart = _batch(zipped, documents, None)
    expected = _learn(zipped, model, apart)
    worst, rows = 0.0, []
    for length in LENGTHS:
        packed = _batch(zipped, documents, length)
        _check_counts(apart, packed)
        worst = max(worst, _check_same(expected, _learn(zipped, model, packed)))
        rows.append(packed.size)
    shared = " and ".join(map(str, rows))
    return f"{len(documents)} documents in {shared} rows, {len(expected[1])} gradients, off by {worst:.1g} at most{how}"


def _batch(zipped: Composition, documents: Sequence[Sequence[Segment]], pack: int | None) -> Batch:
    device = next(zipped.model.parameters()).device
    multimodal = [len({segment.tower for segment in row}) > 1 for row in documents]
    return zipped.collate(documents, multimodal=multimodal, pack=pack).to(device)


def _learn(zipped: Composition, model: ZippedModel, batch: Batch) -> Learnt:
    """Losses, and gradients by parameter, of one batch."""
    model.zero_grad(set_to_none=True)
    outputs = model(batch)
    losses = zipped.loss(outputs, batch)
    if losses["total"].requires_grad:
        losses["total"].backward()  # type: ignore[no-untyped-call]
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, grads


def _check_counts(apart: Batch, packed: Batch) -> None:
    for name, tower in apart.towers.items():
        other = packed.towers[name]
        for what, one, two in (
            ("tokens", tower.order >= 0, other.order >= 0),
            ("predicted tokens", tower.targets != IGNORE, other.targets != IGNORE),
        ):
            if int(one.sum()) != int(two.sum()):
                raise RefutedError(f"{int(one.sum())} {what} of {name}, and {int(two.sum())} in shared rows")


def _check_same(expected: Learnt, found: Learnt) -> float:
    """The largest difference, of losses and of gradients."""
    off: dict[str, float] = {}
    for what, values, other in (("loss", expected[0], found[0]), ("gradient of", expected[1], found[1])):
        least = FLOOR * max((float(value.abs().max()) for value in values.values()), default=0.0)
        for name, value in values.items():
            off[f"{what} {name}"] = _off(value, other[name], least) if name in other else float("inf")
    # Not a number is off, too.
    wrong = sorted((name for name, each in off.items() if not each <= TOLERANCE), key=lambda name: -off[name])
    if wrong:
        told = [f"{name} (by {off[name]:.1g})" for name in wrong]
        raise RefutedError(f"documents that share a row change {some(told)}")
    return max(off.values())


def _off(one: Tensor, other: Tensor, least: float) -> float:
    return float((one - other).abs().max()) / max(float(one.abs().max()), least, torch.finfo(one.dtype).tiny)
