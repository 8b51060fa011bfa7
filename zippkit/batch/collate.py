"""Examples to one padded batch: interleave each, stack the rows, and note who sees whom."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zippkit.batch.batch import COLUMNS, IGNORE, Batch, Features, Segment, TowerBatch
from zippkit.batch.describe import described
from zippkit.batch.interleave import Row, interleave
from zippkit.errors import DataError
from zippkit.plan.sequence_layout import Modality, SequenceLayout, turns
from zippkit.spec.kinds import TowerConfig


def collate(
    examples: Sequence[Sequence[Segment]],
    towers: Mapping[str, TowerConfig],
    multiple: int = 1,
    ids: Sequence[str] = (),
    layout: SequenceLayout | None = None,
    multimodal: bool | Sequence[bool] = True,
) -> Batch:
    """Examples to one padded batch.

    Args:
        examples: segments in linear order, one list for each row.
        towers: configs by name, in spec order.
        multiple: rows are padded to a multiple of this many tokens, so that few shapes occur.
        ids: names of the examples, for messages.
        layout: what the composition's links ask of a sequence.
        multimodal: whether rows pass the input projections: one declaration for all, or one for each. It is never
            derived from a row's segments, of which a position must not know the later ones.

    Raises:
        DataError: see `interleave`; there are no tokens at all; or a row that is declared unimodal has segments of
            several modalities.
    """
    names = [f"example {ids[i] if ids else i}" for i in range(len(examples))]
    declared = declarations(multimodal, [{s.tower for s in example} for example in examples], names)
    rows = [interleave(example, towers, name, layout) for name, example in zip(names, examples, strict=True)]
    present = [name for name in towers if any(name in row for row in rows)]
    if not present:
        raise DataError("a batch needs at least one segment")
    batches = {name: _stack([row.get(name) for row in rows], towers[name], multiple) for name in present}
    if layout is not None and layout.tells_next:
        batches = _with_following(batches, rows, examples, layout.modalities(towers), layout)
    outputs = tuple(name for name in present if bool((batches[name].targets != IGNORE).any()))
    sees = _sees(rows)
    batches = described(batches, {name: towers[name].causal for name in present}, sees)
    return Batch(batches, outputs, declared, sees)


def declarations(
    multimodal: bool | Sequence[bool], modalities: Sequence[Collection[str]], where: Sequence[str]
) -> Tensor | bool:
    """Check which rows are declared multimodal, and give them as `Batch.multimodal` has them.

    Args:
        multimodal: one declaration for all rows, or one for each.
        modalities: for each row, those of its segments.
        where: the name of each row in messages.

    Raises:
        DataError: a row that is declared unimodal and is not, or not as many declarations as rows.
    """
    each = [multimodal] * len(where) if isinstance(multimodal, bool) else list(multimodal)
    if len(each) != len(where):
        raise DataError(f"multimodal: expected one declaration for each of {len(where)} rows, got {len(each)}")
    for row, passes, names in zip(where, each, modalities, strict=True):
        if len(names) > 1 and not passes:
            raise DataError(
                f"{row}: declared unimodal (`multimodal=False`), but has segments of {' and '.join(sorted(names))}"
            )
    return torch.tensor(each) if len(set(each)) > 1 else all(each)


def padded_length(length: int, multiple: int) -> int:
    """Round a length up to the next multiple."""
    return -(-length // multiple) * multiple


def _with_following(
    batches: Mapping[str, TowerBatch],
    rows: Sequence[Mapping[str, Row]],
    examples: Sequence[Sequence[Segment]],
    modalities: Mapping[str, Modality],
    layout: SequenceLayout,
) -> dict[str, TowerBatch]:
    index = {name: i for i, name in enumerate(modalities)}
    following = {name: torch.full_like(batch.tokens, IGNORE) for name, batch in batches.items()}
    for b, (row, example) in enumerate(zip(rows, examples, strict=True)):
        names = [segment.tower for segment in example]
        taken = turns(names, layout)
        # An empty row has no end to predict.
        later = [*(index[turn[0]] for turn in taken[1:]), *([len(index)] if taken else [])]
        after = [what for turn, what in zip(taken, later, strict=True) for _ in turn]
        for k, (name, what) in enumerate(zip(names, after, strict=True)):
            tower = modalities[name].tower
            own = [i for i, s in enumerate(row[tower]["segment"]) if s == k and not row[tower]["inserted"][i]]
            following[tower][b, own[-1]] = what
    return {name: replace(batch, following=following[name]) for name, batch in batches.items()}


def _sees(rows: Sequence[dict[str, Row]]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (target, source)
        for row in rows
        for target in row
        for source in row
        if target != source and _reads(row[target], row[source])
    )


def _reads(target: Row, source: Row) -> bool:
    """Whether some token of the target comes after a token of the source."""
    return source["visible"][0] < target["order"][-1]


def _stack(rows: Sequence[Row | None], config: TowerConfig, multiple: int) -> TowerBatch:
    length = padded_length(max(len(row) for row in rows if row), multiple)
    padding = {
        "order": -1,
        "visible": -1,
        "segment": -1,
        "targets": IGNORE,
        "tokens": config.frame.end if config.frame else 0,
    }
    columns: dict[str, list[list[int]]] = {name: [] for name in COLUMNS}
    for row in rows:
        for name, column in columns.items():
            values = row[name] if row else []
            column.append(values + [padding.get(name, 0)] * (length - len(values)))
    for name in ("positions", "position_ids"):
        # Padding counts on, so that no position embedding meets anything unusual.
        for values, row in zip(columns[name], rows, strict=True):
            n = len(row) if row else 0
            values[n:] = range(n, length)
    tensors: dict[str, Any] = {name: torch.tensor(column) for name, column in columns.items()}
    tensors["inserted"] = tensors["inserted"].bool()
    n_segments = max(len(row.segments) for row in rows if row)
    return TowerBatch(**tensors, n_segments=n_segments, features=_features(rows, tensors["offset"], config))


def _features(rows: Sequence[Row | None], offset: Tensor, config: TowerConfig) -> Features | None:
    """The continuous inputs of all rows, padded with zeros, and which state belongs to which."""
    if not config.continuous:
        return None
    inputs = [values for row in rows if row for values in row.inputs]
    values = np.zeros((len(inputs), max(len(v) for v in inputs), *inputs[0].shape[1:]), dtype=np.float32)
    for padded, given in zip(values, inputs, strict=True):
        padded[: len(given)] = given
    entry, first = torch.zeros_like(offset), 0
    for b, row in enumerate(rows):
        ids = row["segment"] if row else []
        number = {segment: first + i for i, segment in enumerate(dict.fromkeys(ids))}
        entry[b, : len(ids)] = torch.tensor([number[i] for i in ids], dtype=torch.long)
        first += len(number)
    return Features(torch.from_numpy(values), torch.tensor([len(v) for v in inputs]), entry)
