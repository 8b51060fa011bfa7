"""Generation: finish each wanted segment token by token, with caches, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zippkit.batch import IGNORE, Batch, Segment, TowerBatch
from zippkit.composition import Composition
from zippkit.errors import DataError, ZippkitError, did_you_mean
from zippkit.model import Decoding
from zippkit.plan import Plan


@dataclass
class _Rows:
    """Where each row stands."""

    order: Tensor
    """(B,) place of the next token in the whole sequence."""
    positions: dict[str, Tensor]
    """For each tower that advances, (B,) place of its next token among its own."""
    capacity: dict[str, int]
    """For each tower that advances, slots of its cache."""


def generate(
    zipped: Composition, prompt: Sequence[Segment], outputs: Sequence[str], max_tokens: int = 256
) -> list[Segment]:
    """Continue one prompt by a segment of each tower in ``outputs``; see `generate_batch`."""
    return generate_batch(zipped, [prompt], outputs, max_tokens)[0]


@torch.inference_mode()
def generate_batch(
    zipped: Composition, prompts: Sequence[Sequence[Segment]], outputs: Sequence[str], max_tokens: int = 256
) -> list[list[Segment]]:
    """Continue each prompt by one segment of each tower in ``outputs``, in that order, taking the likeliest token.

    Only the tower whose turn it is advances; what it reads of the others was computed once. A segment ends at its
    tower's end id, after ``max_tokens`` tokens, or where the tower's ``max_len`` leaves no room for more. A row's
    answer does not depend on the rows beside it.

    Args:
        zipped: the composition.
        prompts: for each row, the segments that are given; may be empty.
        outputs: towers to generate with.
        max_tokens: longest segment, begin and end ids not counted.

    Returns:
        For each row, its new segments.

    Raises:
        ZippkitError: an output that is no tower, or a tower that cannot generate.
        DataError: a prompt that a tower cannot take, or that leaves it no room to go on.
    """
    if max_tokens < 0:
        raise ZippkitError(f"max_tokens: expected 0 or more, got {max_tokens}")
    for name in outputs:
        if name not in zipped.graph.towers:
            raise ZippkitError(f"outputs: no tower is called {name!r}{did_you_mean(name, zipped.graph.towers)}")
        if not zipped.graph.towers[name].causal:
            raise ZippkitError(f"outputs: {name!r} is not causal, so it cannot generate")
    if not prompts or not outputs:
        return [[] for _ in prompts]
    zipped.model.eval()
    decoding = Decoding()
    rows, multimodal = _prefill(zipped, prompts, outputs, max_tokens, decoding)
    results: list[list[Segment]] = [[] for _ in prompts]
    for turn, name in enumerate(outputs):
        later = set(outputs[turn + 1 :])
        writes = {site for site in zipped.graph.sites if site.source == name and site.target in later}
        given = {site for site in decoding.memories if site.target == name}
        last = name not in later and not writes
        plan = zipped.plan.prune(heads={name}, sees=frozenset(), writes=writes, given=given)
        room = _room(zipped, name, rows, max_tokens, n_turns=outputs[turn:].count(name))
        tokens = _segment(zipped, name, plan, rows, multimodal, decoding, room, feed_end=not last)
        decoding.commit()
        for row, new in enumerate(tokens):
            results[row].append(Segment(name, new))
    return results


def _prefill(
    zipped: Composition,
    prompts: Sequence[Sequence[Segment]],
    outputs: Sequence[str],
    max_tokens: int,
    decoding: Decoding,
) -> tuple[_Rows, Tensor | bool]:
    """Run the prompts once: fill the caches of the towers that go on, and the memories that they read."""
    model = zipped.model
    device = next(model.parameters()).device
    n_rows = len(prompts)
    batch: Batch | None = zipped.collate(prompts).to(device) if any(prompts) else None
    towers = batch.towers if batch else {}
    rows = _Rows(torch.zeros(n_rows, dtype=torch.long, device=device), {}, {})
    for inputs in towers.values():
        rows.order = torch.maximum(rows.order, inputs.order.amax(dim=1) + 1)
    for name in dict.fromkeys(outputs):
        used, n_turns = towers[name].tokens.shape[1] if name in towers else 0, outputs.count(name)
        limit = zipped.graph.towers[name].max_len
        n_slots = used + n_turns * (max_tokens + 2)
        if limit is not None:
            n_slots = min(n_slots, limit)
            if used + 2 * n_turns > limit:
                raise DataError(
                    f"{name}: the prompt has {used} tokens, and begin and end of {n_turns} new segments are to follow; "
                    f"the tower takes at most {limit}"
                )
        rows.capacity[name] = n_slots
        decoding.caches[name] = model.tower(name).new_cache(n_rows, n_slots)
        decoding.n_slots[name] = used
        there = (towers[name].order >= 0).sum(dim=1) if name in towers else torch.zeros_like(rows.order)
        rows.positions[name] = there
    kinds = [{segment.tower for segment in prompt} | set(outputs) for prompt in prompts]
    flags = [len(kind) > 1 for kind in kinds]
    multimodal: Tensor | bool = flags[0] if len(set(flags)) == 1 else torch.tensor(flags, device=device)
    if batch is not None:
        writes = {site for site in zipped.graph.sites if site.source in towers and site.target in outputs}
        plan = zipped.plan.prune(heads=set(), sees=batch.sees, writes=writes, layers=set(outputs) & set(towers))
        model.run(plan, towers, multimodal, decoding)
        decoding.commit()
    return rows, multimodal


def _room(zipped: Composition, name: str, rows: _Rows, max_tokens: int, n_turns: int) -> Tensor:
    """(B,) longest next segment, so that the tower can still frame each of its ``n_turns`` segments."""
    room = torch.full_like(rows.order, max_tokens)
    limit = zipped.graph.towers[name].max_len
    return room if limit is None else torch.minimum(room, limit - 2 * n_turns - rows.positions[name])


def _segment(
    zipped: Composition,
    name: str,
    plan: Plan,
    rows: _Rows,
    multimodal: Tensor | bool,
    decoding: Decoding,
    room: Tensor,
    feed_end: bool,
) -> list[list[int]]:
    """Generate one segment in every row; ``feed_end`` runs the end id too, for those who read it later."""
    config = zipped.graph.towers[name]
    if config.frame is None:
        raise ZippkitError(f"{name} has no begin and end ids, so it cannot generate")
    begin, end = config.frame.begin, config.frame.end
    tokens = torch.full_like(rows.order, begin)
    active = torch.ones_like(tokens, dtype=torch.bool)
    found: list[Tensor] = []
    for step in range(int(room.max()) + 2):
        inputs = _next_inputs(tokens, active, rows, name)
        decoding.n_slots[name] = min(decoding.n_slots[name] + 1, rows.capacity[name])
        logits = zipped.model.run(plan, {name: inputs}, multimodal, decoding)[name][:, -1]
        rows.order += active
        rows.positions[name] += active
        # The end id was fed in this step: the row is complete.
        active = active & (tokens != end)
        chosen = torch.where(step < room, logits.argmax(dim=-1), end)
        tokens = torch.where(active, chosen, end)
        found.append(tokens)
        if not (active if feed_end else active & (tokens != end)).any():
            break
    table = torch.stack(found, dim=1).tolist()
    return [row[: row.index(end)] if end in row else row for row in table]


def _next_inputs(tokens: Tensor, active: Tensor, rows: _Rows, name: str) -> TowerBatch:
    """One token a row; a row that is complete sees nothing, is seen by nobody, and its slot is written over later."""
    order = torch.where(active, rows.order, -1)[:, None]
    column = tokens[:, None]
    # The next slot of a complete row may be past the last one; no token of such a row is ever read again.
    positions = rows.positions[name].clamp(max=rows.capacity[name] - 1)[:, None]
    return TowerBatch(column, order, order, order, positions, torch.full_like(column, IGNORE))
