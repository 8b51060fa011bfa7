"""Prefill: run the prompts once, which fills the KV caches and the memories of the links."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence

from zippkit.batch.batch import Batch, TowerBatch
from zippkit.generation.row import Row
from zippkit.generation.row_batch import RowBatch
from zippkit.model.next_modality import PREFIX
from zippkit.plan.plan import Wanted
from zippkit.plan.sequence_layout import Insert


def prefill(batch: RowBatch, multimodal: bool | Sequence[bool]) -> None:
    """Run the prompts of all rows; the model's first choice of what comes next is made, where it chooses.

    Args:
        batch: rows that have not begun.
        multimodal: the rows' declarations, as `zippkit.composition.Composition.collate` takes them.

    Raises:
        DataError: a prompt that a tower cannot take, or that leaves it no room to go on.
    """
    advancing = [row.to_come(row.turns) for row in batch.rows]
    towers = list(dict.fromkeys(tower for names in advancing for tower in names))
    prompts, given = [row.prompt for row in batch.rows], None
    if any(prompts) and towers:
        given = batch.request.zipped.collate(prompts, multimodal=multimodal).to(batch.request.device)
    inputs = given.towers if given else {}
    queue_inserts(batch, inputs)
    set_positions(batch.rows, inputs)
    for tower in towers:
        _allocate(batch, tower, inputs[tower].tokens.shape[1] if tower in inputs else 0, advancing)
    if given is not None:
        _run(batch, given, towers)


def queue_inserts(batch: RowBatch, inputs: Mapping[str, TowerBatch]) -> None:
    """Remember the inserted places of the prompts' segments that no segment of their target follows."""
    segments = {name: tokens.segment.masked_fill(tokens.inserted, -1).tolist() for name, tokens in inputs.items()}
    for insert in batch.request.graph.layout.inserts:
        for row in batch.rows:
            last = max(segments[insert.target][row.number]) if insert.target in segments else -1
            own = segments[insert.source][row.number] if insert.source in segments else []
            row.waiting[insert.target] += _places_after(insert, own, last)
            row.waiting[insert.target].sort(key=operator.itemgetter(0))


def _places_after(insert: Insert, segments: Sequence[int], last: int) -> list[tuple[int, int]]:
    """Places of the source's segments behind segment ``last``, from the number of each token's segment."""
    return [(number, insert.n_slots(size)) for number, size in Counter(segments).items() if number > last]


def set_positions(rows: Sequence[Row], inputs: Mapping[str, TowerBatch]) -> None:
    """Set the rows behind their prompts."""
    for name, tokens in inputs.items():
        orders, counts = tokens.order.amax(dim=1).tolist(), (tokens.order >= 0).sum(dim=1).tolist()
        for row, order, count in zip(rows, orders, counts, strict=True):
            row.order = max(row.order, order + 1)
            row.positions[name] = count


def _allocate(batch: RowBatch, tower: str, width: int, advancing: Sequence[Sequence[str]]) -> None:
    """Make a tower's KV cache for the prompts; it grows up to what its longest row can come to need."""
    needed = [slots_needed(row, tower, names) for row, names in zip(batch.rows, advancing, strict=True)]
    batch.allocate(tower, width, max(width, *needed))


def slots_needed(row: Row, tower: str, advancing: Sequence[str]) -> int:
    """The most slots of a tower's cache that a row can come to need."""
    if tower not in advancing:
        return row.positions[tower]
    request = row.request
    request.limits.check(tower, row, advancing)
    wanted = [modality for turn in row.turns for modality in turn] + list(request.choices) * row.choices_left
    return request.limits.slots(tower, row, wanted, request.max_tokens)


def _run(batch: RowBatch, given: Batch, advancing: Sequence[str]) -> None:
    """Run the prompts; where the model chooses, each row's last position predicts the next modality."""
    request = batch.request
    modalities = request.modalities
    last = [modalities[row.prompt[-1].tower].tower for row in batch.rows] if request.choices else []
    writes = {s for s in request.graph.sites if s.source in given.towers and s.target in advancing}
    layers = set(advancing) & set(given.towers)
    plan = request.zipped.plan.prune(
        Wanted(sees=given.sees, writes=writes, layers=layers, parts={PREFIX + tower for tower in last})
    )
    found = request.model.run(plan, given.towers, batch.multimodal, batch.decoding)
    batch.commit(batch.rows)
    for row, tower in zip(batch.rows, last, strict=False):
        row.follow(found[PREFIX + tower][row.number, row.positions[tower] - 1])
