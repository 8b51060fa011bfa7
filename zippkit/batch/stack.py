"""One tower's runs to its part of a batch: columns, ids that its vocabulary has, and a continuous tower's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippkit.batch.batch import Features, TowerBatch
from zippkit.batch.columns import Ints, Line
from zippkit.batch.describe_runs import Stairs
from zippkit.batch.interleave import Interleaving
from zippkit.errors import DataError


def stack(name: str, laid: Interleaving, line: Line, stairs: Stairs, where: Sequence[str]) -> TowerBatch:
    """The columns of one tower.

    Args:
        name: of the tower.
        laid: all documents, as runs.
        line: the tower's places in all rows.
        stairs: of its own tokens, and of those of other towers.
        where: what messages call each document.

    Raises:
        DataError: an id outside the vocabulary.
    """
    config = laid.towers[name]
    contents = [laid.contents[name][i] for i in line.content.tolist()]
    order = line.spread(line.order) + line.offset * line.spread(line.order_step)
    start, positions = line.spread(line.start), line.positions()
    ids = None if config.continuous else _ids(contents, line, laid, where)
    tokens = line.tokens(ids, laid.frames, config.frame.end if config.frame else 0)
    in_whole = np.where(line.is_real, order - start, positions) if name in laid.layout.shared else positions
    column = {
        "tokens": tokens,
        "order": order,
        "start": start,
        "visible": line.spread(line.visible) + line.offset * line.spread(line.visible_step),
        "segment": line.spread(line.segment),
        "offset": line.offset,
        "positions": positions,
        "position_ids": in_whole,
        "inserted": line.spread(line.inserted),
        "targets": line.targets(tokens),
    }
    tensors: dict[str, Any] = {name: _shaped(values, line) for name, values in column.items()}
    return TowerBatch(
        **tensors,
        n_segments=line.n_segments(),
        packed=line.packed,
        features=_features(contents, line) if config.continuous else None,
        following=_shaped(line.after(), line) if laid.layout.tells_next else None,
        stairs=stairs.over,
        own_stairs=stairs.own,
    )


def _shaped(values: NDArray[Any], line: Line) -> Tensor:
    return torch.from_numpy(values.reshape(line.shape))


def _ids(contents: Sequence[NDArray[Any]], line: Line, laid: Interleaving, where: Sequence[str]) -> Ints:
    """The ids of all segments, run after run, each in its modality's own numbers."""
    ids = np.concatenate(contents, dtype=np.int64, casting="unsafe") if contents else np.zeros(0, dtype=np.int64)
    sizes, modality = laid.sizes, line.modality[line.framed]
    # As numbers without a sign, those below 0 are beyond every vocabulary.
    if len(ids) and int(ids.view(np.uint64).max()) >= sizes[modality].min():
        lengths = line.length[line.framed] - 2
        wrong = np.flatnonzero((ids < 0) | (ids >= sizes[modality].repeat(lengths)))
        if len(wrong):
            run = int(np.arange(len(lengths)).repeat(lengths)[wrong[0]])
            document, segment = line.document[line.framed][run], line.own_segment[line.framed][run]
            raise DataError(
                f"{where[document]}: segment {segment} ({list(laid.modalities)[modality[run]]}): token {ids[wrong[0]]} "
                f"is outside the vocabulary of {sizes[modality[run]]}; made by another tokenizer?"
            )
    return ids


def _features(inputs: Sequence[NDArray[np.float32]], line: Line) -> Features:
    """The continuous inputs of all rows, padded with zeros, and which state belongs to which."""
    values = np.zeros((len(inputs), max(len(v) for v in inputs), *inputs[0].shape[1:]), dtype=np.float32)
    for padded, given in zip(values, inputs, strict=True):
        padded[: len(given)] = given
    entry = np.zeros(len(line.length), dtype=np.int64)
    entry[line.framed] = np.arange(len(inputs))
    return Features(torch.from_numpy(values), torch.tensor([len(v) for v in inputs]), _shaped(line.spread(entry), line))
