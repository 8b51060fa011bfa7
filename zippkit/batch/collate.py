"""Examples to one padded batch: lay each out, make the columns of every tower, and note who sees whom."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from zippkit.batch.batch import Batch, Segment
from zippkit.batch.columns import Ints, Line, Placing, as_table, by_field, in_rows, one_each
from zippkit.batch.describe_runs import described
from zippkit.batch.interleave import Interleaving
from zippkit.batch.packing import share_rows_alike
from zippkit.batch.stack import stack
from zippkit.errors import DataError
from zippkit.plan.sequence_layout import SequenceLayout
from zippkit.spec.kinds import TowerConfig

NEVER = np.iinfo(np.int64).max


def collate(
    examples: Sequence[Sequence[Segment]],
    towers: Mapping[str, TowerConfig],
    multiple: int = 1,
    ids: Sequence[str] = (),
    layout: SequenceLayout | None = None,
    multimodal: bool | Sequence[bool] = True,
    pack: int | None = None,
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
        pack: let examples share rows of at most this many tokens of any tower, or of the longest example's; each sees
            itself alone, and its positions count from 0. None: each has a row of its own.

    Raises:
        DataError: an unknown tower, an id outside its vocabulary, a sequence past its maximum length, segments that
            are simultaneous and not of one length; there are no tokens at all; or a row that is declared unimodal has
            segments of several modalities.
    """
    names = [f"example {ids[i] if ids else i}" for i in range(len(examples))]
    declared: Tensor | bool = True
    if multimodal is not True:
        declared = declarations(multimodal, [{s.tower for s in example} for example in examples], names)
    laid = Interleaving(towers, layout or SequenceLayout())
    for name, example in zip(names, examples, strict=True):
        laid.add(example, name)
    if not laid.runs:
        raise DataError("a batch needs at least one segment")
    tables = {name: as_table(laid.runs[name]) for name in towers if name in laid.runs}
    runs = {name: by_field(table) for name, table in tables.items()}
    for name, of in runs.items():
        _check_length(name, towers[name], of, name in laid.layout.shared, names)
    placing = one_each(len(examples)) if pack is None else _packed(laid, runs, declared, pack)
    if placing.packed and isinstance(declared, Tensor):
        declared = declared[[int((placing.row == row).argmax()) for row in range(placing.n_rows)]]
    sees = _sees(runs, len(examples))
    lines = {name: Line(table, placing, multiple) for name, table in tables.items()}
    stairs = described(lines, {name: towers[name].causal for name in lines}, sees)
    batches = {name: stack(name, laid, line, stairs[name], names) for name, line in lines.items()}
    outputs = tuple(name for name, of in runs.items() if of["loss"].any())
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


def _check_length(
    name: str, config: TowerConfig, table: Mapping[str, Ints], shared: bool, names: Sequence[str]
) -> None:
    """Refuse a document of which the tower has more tokens than it takes."""
    if config.max_len is None:
        return
    document, n = table["document"], table["length"]
    if not config.predicts:
        # An encoder counts positions from its segment's begin.
        lengths = n
    else:
        lengths = np.bincount(document, n).astype(np.int64)[document]
        if shared:
            lengths = np.maximum(lengths, table["order"] + (n - 1) * table["order_step"] + 1)
    if (lengths > config.max_len).any():
        at = int((lengths > config.max_len).argmax())
        raise DataError(f"{names[document[at]]}: {lengths[at]} {name} tokens; the tower takes at most {config.max_len}")


def _packed(laid: Interleaving, runs: Mapping[str, Mapping[str, Ints]], declared: Tensor | bool, pack: int) -> Placing:
    """Let documents of one declaration share rows."""
    n = len(laid.n_orders)
    lengths = [np.bincount(of["document"], of["length"], n).astype(np.int64) for of in runs.values()]
    kinds = declared.tolist() if isinstance(declared, Tensor) else [declared] * n
    return in_rows(share_rows_alike(np.stack(lengths, axis=1), pack, kinds), laid.n_orders, laid.n_segments)


def _sees(tables: Mapping[str, Mapping[str, Ints]], n_documents: int) -> frozenset[tuple[str, str]]:
    """(target, source) pairs in which some token of the target comes after a token of the source."""
    ends: dict[str, tuple[Ints, Ints]] = {}
    for name, table in tables.items():
        first, last = np.full(n_documents, NEVER), np.full(n_documents, -1)
        document = table["document"]
        last[document] = table["order"] + (table["length"] - 1) * table["order_step"]
        # Of several runs the one that is written last stays: the document's first.
        first[document[::-1]] = table["visible"][::-1]
        ends[name] = first, last
    return frozenset(
        (target, source) for target, source in permutations(tables, 2) if (ends[source][0] < ends[target][1]).any()
    )
