"""The pieces of a batch of which a tower's states are a function: segments of an encoder, documents of a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from zippkit.batch.batch import Features, TowerBatch
from zippkit.batch.describe import describe_self
from zippkit.training.state_store import digest

_OWN = ("tokens", "position_ids", "positions", "offset")
"""The columns that a tower's states may depend on, besides its features; orders and targets are others' business."""


@dataclass(frozen=True)
class Unit:
    """Tokens of one row that a tower runs apart from all others."""

    row: int
    place: slice
    """Along T."""
    inputs: TowerBatch
    """The same tokens as a row of their own, without padding."""
    multimodal: bool
    """Whether the row passes the input projections."""

    def key(self, *about: str) -> str:
        """SHA-256 of everything that the tower is fed, and of ``about``."""
        columns = [_bytes(getattr(self.inputs, name)) for name in _OWN]
        features = self.inputs.features
        if features is not None:
            columns += [str(tuple(features.values.shape)).encode(), *map(_bytes, _tensors(features))]
        return digest(*about, *columns)


def units(inputs: TowerBatch, causal: bool, multimodal: Tensor | bool) -> Iterator[Unit]:
    """Cut a tower's batch (on the CPU) into its units.

    Args:
        inputs: the tower's tokens.
        causal: a position sees all of its document before it; otherwise its own segment alone.
        multimodal: (B,) rows that pass the input projections, or one bool for all.
    """
    owners = torch.where(inputs.order >= 0, inputs.start if causal else inputs.segment, -1)
    for row, owner in enumerate(owners.tolist()):
        stop = 0
        for each, run in groupby(owner):
            start, stop = stop, stop + len(list(run))
            if each >= 0:
                place = slice(start, stop)
                passes = bool(multimodal if isinstance(multimodal, bool) else multimodal[row])
                yield Unit(row, place, _alone(inputs, row, place, causal), passes)


def _alone(inputs: TowerBatch, row: int, place: slice, causal: bool) -> TowerBatch:
    """The tokens as a batch of one row; their orders and segments count from 0."""
    own = inputs.mapped(lambda column: column[row : row + 1, place])
    ranks = {segment: rank for rank, segment in enumerate(dict.fromkeys(own.segment[0].tolist()))}
    segment = torch.tensor([[ranks[segment] for segment in own.segment[0].tolist()]])
    order, first = torch.arange(own.order.shape[1])[None], torch.zeros_like(own.start)
    features = None if inputs.features is None else _features(inputs.features, inputs.features.entry[row, place])
    alone = replace(
        own,
        order=order,
        start=first,
        visible=order,
        segment=segment,
        n_segments=len(ranks),
        packed=False,
        features=features,
        following=None,
    )
    return replace(alone, own_stairs=describe_self(alone, causal))


def _features(features: Features, entries: Tensor) -> Features:
    """The inputs of some entries alone, without the padding of others."""
    which = list(dict.fromkeys(entries.tolist()))
    lengths = features.lengths[which]
    number = {entry: i for i, entry in enumerate(which)}
    values = features.values[which, : int(lengths.max())]
    return Features(values, lengths, torch.tensor([[number[entry] for entry in entries.tolist()]]))


def _tensors(features: Features) -> list[Tensor]:
    return [features.values, features.lengths, features.entry]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
