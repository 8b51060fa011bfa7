"""C1: no position sees the future, through any chain of links, nor whether there is one.

First on the plan and its masks alone (`dependence.py`), then on a copy whose links are awake: every token
is replaced in turn, and every later segment is cut off, and whatever must not notice has to stay as it is to the last
bit. To agree that far, two runs must have the same shapes and every row its own place in the batch, so each trial is a
pair of such batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from zippkit.batch.batch import Batch, Segment, TowerBatch
from zippkit.composition import Composition
from zippkit.evaluation.certificates.dependence import check_dependence, check_order
from zippkit.evaluation.certificates.probe import (
    DRAWS,
    Draws,
    acting_sites,
    draws_for,
    kept_apart,
    knows,
    mixed_batch,
    orders,
    place_of,
    position,
    randomize_zero_inits,
    real,
    through,
    to_device,
    with_states,
    with_zero_inits_randomized,
)
from zippkit.evaluation.certificates.report import RefutedError
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.graph import LinkSite
from zippkit.plan.plan import Plan, Wanted
from zippkit.plan.sequence_layout import turns


@dataclass(frozen=True)
class Trial:
    """Two batches of one shape, and where their logits must agree bit for bit."""

    before: Batch
    after: Batch
    fixed: Mapping[str, Tensor]
    """For each tower, (B, T) bool."""
    causes: Sequence[str]
    """For each row, how the second batch differs."""


@torch.no_grad()
def sees_no_future(zipped: Composition) -> str:
    """Certificate C1.

    Raises:
        RefutedError: names a position, what it notices and must not, and the first operation by which it does; or a
            link that carries nothing, about which no trial can say anything.
    """
    check_order(zipped)
    check_dependence(zipped)
    model = with_zero_inits_randomized(zipped.model)
    n_trials = 0
    for trial in _trials(zipped):
        _demand(model, trial)
        n_trials += 1
    sites = acting_sites(model.plan)
    for site in sites:
        _demand_carrying(zipped, model, site)
    return (
        f"{n_trials} trials on {len(zipped.graph.towers)} towers; {len(sites)} sites carry information forward"
        f"{kept_apart(model)}"
    )


def _trials(zipped: Composition) -> Iterator[Trial]:
    """In an order in which each one can rely on those before it."""
    draws = draws_for(zipped)
    mixed = mixed_batch(zipped, draws)
    n_rows = mixed.size
    all_real = {name: real(tokens) for name, tokens in mixed.towers.items()}
    yield Trial(mixed, mixed, all_real, ["nothing does (two runs of one batch)"] * n_rows)
    for row in range(n_rows):
        here = {name: torch.zeros_like(mask) for name, mask in all_real.items()}
        for mask in here.values():
            mask[row] = True
        fixed = {name: mask & ~here[name] for name, mask in all_real.items()}
        causes = [f"only row {row} of the batch, another one, does"] * n_rows
        yield Trial(mixed, draws.changed(mixed, here), fixed, causes)
    rows = [draws.row(names) for names in orders(zipped)]
    for drawn in rows:
        yield _one_token_a_row(zipped, draws, drawn)
    after = draws.changed(mixed, {name: ~mask for name, mask in all_real.items()})
    yield Trial(mixed, after, all_real, ["only padding does"] * n_rows)
    for drawn in rows:
        yield _cut_short(zipped, drawn)


def _cut_short(zipped: Composition, row: Sequence[Segment]) -> Trial:
    """One and the same row as often as it has turns; the second time, each copy ends after another turn.

    The last copy is whole, so that both batches have the same shape.
    """
    ends = list(accumulate(len(turn) for turn in turns([segment.tower for segment in row], zipped.graph.layout)))
    whole, cut = to_device(zipped, [row] * len(ends)), to_device(zipped, [row[:end] for end in ends])
    # The same inputs of continuous towers: what is cut off stays among them, and nobody reads it.
    towers = {name: replace(tokens, features=whole.towers[name].features) for name, tokens in cut.towers.items()}
    fixed = {name: real(tokens) for name, tokens in cut.towers.items()}
    causes = [f"what follows its first {end} segments is cut off" for end in ends]
    return Trial(whole, replace(cut, towers=towers), fixed, causes)


def _one_token_a_row(zipped: Composition, draws: Draws, row: Sequence[Segment]) -> Trial:
    """One and the same row as often as it has tokens; the second time, each copy has another token replaced."""
    single = to_device(zipped, [row])
    limits = {name: knows(tokens, zipped.graph.towers[name].causal) for name, tokens in single.towers.items()}
    places = [(name, i) for name, tokens in single.towers.items() for i in _units(tokens)]
    before = to_device(zipped, [row] * len(places))
    where = {name: torch.zeros_like(tokens.tokens, dtype=torch.bool) for name, tokens in before.towers.items()}
    for copy, (name, i) in enumerate(places):
        where[name][copy, i] = True
    replaced = torch.stack([limits[name][0, i] for name, i in places])
    fixed = {name: limit < replaced[:, None] for name, limit in limits.items()}
    causes = [f"{position(name, single.towers[name], 0, i)} does" for name, i in places]
    return Trial(before, draws.changed(before, where), fixed, causes)


def _units(tokens: TowerBatch) -> list[int]:
    """Places of a row's tokens; of continuous inputs, which change as a whole, where each segment begins."""
    n = tokens.tokens.shape[1]
    return list(range(n)) if tokens.features is None else (tokens.offset[0] == 0).nonzero()[:, 0].tolist()


def _demand(model: ZippedModel, trial: Trial) -> None:
    violation = _violation(model, trial)
    if violation is not None:
        raise RefutedError(f"{_first_violation(model, trial) or violation}{kept_apart(model)}")


def _violation(model: ZippedModel, trial: Trial, plan: Plan | None = None) -> str | None:
    """A position that changes and must not, in words."""
    for tower, moved in _changes(model, trial.before, trial.after, plan).items():
        wrong = (moved & trial.fixed[tower]).nonzero()
        if len(wrong):
            row, index = wrong[0].tolist()
            return f"{position(tower, trial.before.towers[tower], row, index)} changes when {trial.causes[row]}"
    return None


def _changes(model: ZippedModel, before: Batch, after: Batch, plan: Plan | None) -> dict[str, Tensor]:
    """For each tower, (B, T) bool: whose logits differ in any bit."""
    old, new = (
        model(with_states(model, batch)) if plan is None else model.run(plan, batch.towers, batch.multimodal)
        for batch in (before, after)
    )
    for tower, logits in old.items():
        if not logits.isfinite().all():
            raise RefutedError(f"the logits of {tower} are not finite, so nothing can be shown")
    return {tower: (old[tower] != new[tower]).any(dim=-1) for tower in old if tower in before.towers}


def _first_violation(model: ZippedModel, trial: Trial) -> str | None:
    """Run ever more of the plan, with the heads right behind it, until something changes that must not."""
    plan = model.plan.prune(Wanted(heads=set(with_states(model, trial.before).outputs), sees=trial.before.sees))
    body = [op for op in plan.ops if op.kind != "head"]
    for n, op in enumerate(body, start=1):
        started = {op.tower for op in body[:n] if op.kind == "start"}
        heads = (op for op in plan.ops if op.kind == "head" and op.tower in started)
        violation = _violation(model, trial, Plan((*body[:n], *heads), ()))
        if violation:
            return f"{violation}, first at {place_of(op)}"
    return None


def _demand_carrying(zipped: Composition, model: ZippedModel, site: LinkSite) -> None:
    plan = through(model.plan, site.target, [site])
    for seed in range(DRAWS):
        draws = draws_for(zipped, seed)
        before = to_device(zipped, [draws.row(names) for names in orders(zipped)])
        source = before.towers[site.source]
        after = draws.changed(before, {site.source: real(source)})
        if _changes(model, before, after, plan)[site.target].any():
            return
        randomize_zero_inits(model, seed + 1)
    raise RefutedError(
        f"link {site.link}.{site.index} carries nothing ({site.target} does not change when {site.source} does), "
        "so it could not be tried"
    )
