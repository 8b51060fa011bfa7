"""C1 without running the model: which token depends on which, followed through every operation of the plan."""

from __future__ import annotations

import torch
from torch import Tensor

from zippkit.batch import describe, masks
from zippkit.batch.batch import Batch, TowerBatch
from zippkit.composition import Composition
from zippkit.evaluation.certificates.probe import draws_for, knows, orders, position, real
from zippkit.evaluation.certificates.report import RefutedError
from zippkit.model.visibility import own_visibility, visibility_of
from zippkit.plan.graph import LinkSite
from zippkit.plan.plan import Op, Plan, Wanted


def check_order(zipped: Composition) -> None:
    """Every operation comes after what it needs, in the whole plan and in the one for each linked direction.

    Raises:
        RefutedError: names the operation that comes too early.
    """
    _check_order(zipped.plan)
    for target, source in dict.fromkeys((site.target, site.source) for site in zipped.graph.sites):
        _check_order(zipped.plan.prune(Wanted(heads={target}, sees={(target, source)})))


def _check_order(plan: Plan) -> None:
    depths: dict[str, int] = {}
    written: set[LinkSite] = set()
    done: set[Op] = set()
    needs = dict(plan.needs)
    for op in plan.ops:
        for needed in sorted(needs[op] - done, key=str):
            raise RefutedError(f"the plan runs `{op}` before `{needed}`, which it needs")
        if depths.get(op.tower) != _depth_before(op):
            raise RefutedError(f"the plan runs `{op}` when {op.tower} is at depth {depths.get(op.tower)}")
        if op.kind == "read" and op.site not in written:
            raise RefutedError(f"the plan runs `{op}` before anything was written for it")
        if op.kind == "write" and op.site is not None:
            written.add(op.site)
        depths[op.tower] = op.depth - 1 if op.inside else op.depth
        done.add(op)


def _depth_before(op: Op) -> int | None:
    """Number of the tower's layers that must have run; None if it must not have started."""
    if op.kind == "start":
        return None
    return op.depth - 1 if op.kind == "layer" or op.inside else op.depth


def check_dependence(zipped: Composition) -> None:
    """Follow dependence through the plan; every rendering of a mask counts, so all of them must be right.

    Raises:
        RefutedError: names two tokens and the operation by which one comes to know of the other.
    """
    draws = draws_for(zipped)
    # A segment of a waveform or of an image can have a thousand states, whose pairs are all looked at.
    rounds = 2 if any(config.continuous for config in zipped.graph.towers.values()) else 4
    batch = zipped.collate([draws.row(names) for names in orders(zipped, rounds)])
    plan = zipped.plan.prune(Wanted(heads=set(batch.outputs), sees=batch.sees))
    future = _future(zipped, batch)
    known: dict[str, Tensor] = {}
    memories: dict[LinkSite, Tensor] = {}
    joined: dict[str, Tensor] = {}
    for op in plan.ops:
        own, tower = batch.towers[op.tower], op.tower
        if op.kind == "start":
            known[tower] = _itself(batch, tower, zipped.graph.towers[tower].continuous)
        elif op.kind == "layer":
            attended = _reach(_self_mask(own, zipped.graph.towers[tower].causal), known[tower])
            known[tower] = attended | joined.pop(tower, torch.zeros_like(attended))
        elif op.kind == "write" and op.site is not None:
            memories[op.site] = known[tower]
        elif op.kind == "read" and op.site is not None:
            source = batch.towers[op.site.source]
            mask = _inserted(own, source) if op.site.acts == "embedding" else _cross_mask(own, source)
            found = _reach(mask, memories[op.site])
            if op.inside:
                joined[tower] = joined.get(tower, torch.zeros_like(found)) | found
            else:
                known[tower] = known[tower] | found
        leaks = (known[tower] & future[tower]).nonzero()
        if len(leaks):
            row, query, key = leaks[0].tolist()
            names = [position(name, t, row, i) for name, t in batch.towers.items() for i in range(t.tokens.shape[1])]
            me = position(tower, own, row, query)
            raise RefutedError(f"by the masks, {me} depends on {names[key]}, first at `{op}`")


def _future(zipped: Composition, batch: Batch) -> dict[str, Tensor]:
    """For each tower (B, T, N): the tokens of all towers, one after the other, of which a token must know nothing."""
    towers = zipped.graph.towers
    limits = {name: knows(tokens, towers[name].causal) for name, tokens in batch.towers.items()}
    keys = torch.cat(list(limits.values()), dim=1)[:, None, :]
    return {
        name: ((keys > limit[:, :, None]) | (keys < 0)) & real(batch.towers[name])[:, :, None]
        for name, limit in limits.items()
    }


def _itself(batch: Batch, tower: str, continuous: bool) -> Tensor:
    """(B, T, N): at the embedding, a token knows of itself, and a state of continuous inputs of its whole segment."""
    sizes = {name: tokens.tokens.shape[1] for name, tokens in batch.towers.items()}
    segment = batch.towers[tower].segment
    own = segment[:, :, None] == segment[:, None, :]
    if not continuous:
        own = torch.eye(sizes[tower]).bool().expand(batch.size, -1, -1)
    blocks = [own if name == tower else own.new_zeros(batch.size, sizes[tower], n) for name, n in sizes.items()]
    return torch.cat(blocks, dim=2)


def _reach(mask_BTS: Tensor, known_BSN: Tensor) -> Tensor:
    """Return what is known to the tokens that each token sees."""
    return (mask_BTS.float() @ known_BSN.float()) > 0


def _self_mask(tokens: TowerBatch, causal: bool) -> Tensor:
    n = tokens.tokens.shape[1]
    mask, described = masks.self_mask(tokens, causal), own_visibility(tokens, causal)
    plain = torch.ones(n, n, dtype=torch.bool).tril().expand(len(tokens.tokens), -1, -1)
    tables = [plain if mask is None else mask, plain if described is None else described.table()]
    return tables[0] | tables[1] | describe.describe_self(tokens, causal).dense()


def _inserted(target: TowerBatch, source: TowerBatch) -> Tensor:
    """(B, T, S): the source's segment that an inserted place stands for."""
    return target.inserted[:, :, None] & (target.segment[:, :, None] == source.segment[:, None, :])


def _cross_mask(target: TowerBatch, source: TowerBatch) -> Tensor:
    table = visibility_of(target, source.visible).table()
    return table | masks.cross_mask(target.order, source.visible) | describe.describe_cross(target, source).dense()
