"""Segments to padded batches: each tower's own tokens densely packed, each with its place in the whole sequence."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from zippkit.config import TowerConfig
from zippkit.errors import DataError, did_you_mean

IGNORE = -100
"""A target that no loss is taken on."""


@dataclass(frozen=True)
class Segment:
    """A run of one modality, without its begin and end ids."""

    tower: str
    tokens: Any
    """Token ids: a list, an array or a tensor of one dimension."""
    loss: bool = True
    """Whether these tokens (and the end id) are to be predicted."""


@dataclass(frozen=True)
class TowerBatch:
    """One tower's tokens, rows padded at the end."""

    tokens: Tensor
    """(B, T) token ids; padding repeats the tower's end id."""
    order: Tensor
    """(B, T) place in the interleaved sequence; -1 marks padding."""
    visible: Tensor
    """(B, T) order from which other towers may see the token: its own, or its segment's last if not causal."""
    segment: Tensor
    """(B, T) which segment of the row the token belongs to; -1 marks padding."""
    positions: Tensor
    """(B, T) place among the tower's own tokens; padding counts on."""
    targets: Tensor
    """(B, T) the next token of the same segment; IGNORE at its end, at padding and where no loss is asked."""

    def to(self, device: torch.device | str) -> Self:
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass(frozen=True)
class Batch:
    """Examples as the towers see them."""

    towers: dict[str, TowerBatch]
    """Only towers that have tokens in some row."""
    outputs: tuple[str, ...]
    """Towers on which a loss is asked, in spec order; the plan is pruned to them."""
    multimodal: Tensor | bool
    """(B,) rows with more than one modality, which pass the input projections; a bool where all rows are alike."""
    sees: frozenset[tuple[str, str]]
    """(target, source) pairs in which some target token has a source token before it; other links are blind."""

    @property
    def size(self) -> int:
        return next(iter(self.towers.values())).tokens.shape[0]

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding; waits for the device."""
        return sum(int((tower.order >= 0).sum()) for tower in self.towers.values())

    def to(self, device: torch.device | str) -> Self:
        towers = {name: tower.to(device) for name, tower in self.towers.items()}
        multimodal = self.multimodal.to(device) if isinstance(self.multimodal, Tensor) else self.multimodal
        return replace(self, towers=towers, multimodal=multimodal)


Row = dict[str, list[int]]
_COLUMNS = tuple(f.name for f in fields(TowerBatch))


def interleave(
    segments: Sequence[Segment], towers: Mapping[str, TowerConfig], where: str = "example"
) -> dict[str, Row]:
    """Frame each segment and split the sequence into each tower's own tokens.

    Returns:
        For each tower with tokens, the columns of TowerBatch as lists of one length.

    Raises:
        DataError: an unknown tower, an id outside its vocabulary, a sequence past its maximum length.
    """
    rows: dict[str, Row] = {}
    order = 0
    for index, segment in enumerate(segments):
        if segment.tower not in towers:
            raise DataError(
                f"{where}: segment {index}: no tower is called {segment.tower!r}{did_you_mean(segment.tower, towers)}"
            )
        config = towers[segment.tower]
        tokens = _framed(segment, config, f"{where}: segment {index} ({segment.tower})")
        row = rows.setdefault(segment.tower, {name: [] for name in _COLUMNS})
        n, before = len(tokens), len(row["tokens"])
        row["tokens"] += tokens
        row["order"] += range(order, order + n)
        row["visible"] += range(order, order + n) if config.causal else [order + n - 1] * n
        row["segment"] += [index] * n
        row["positions"] += range(before, before + n)
        row["targets"] += [*tokens[1:], IGNORE] if segment.loss else [IGNORE] * n
        order += n
        if config.max_len is not None and before + n > config.max_len:
            raise DataError(f"{where}: {before + n} {segment.tower} tokens; the tower takes at most {config.max_len}")
    return rows


def _framed(segment: Segment, config: TowerConfig, where: str) -> list[int]:
    given = segment.tokens.tolist() if hasattr(segment.tokens, "tolist") else segment.tokens
    try:
        tokens = [operator.index(token) for token in given]
    except TypeError as error:
        raise DataError(f"{where}: expected a run of whole numbers as tokens: {error}") from error
    if config.vocab_size is not None and tokens and not (min(tokens) >= 0 and max(tokens) < config.vocab_size):
        wrong = next(token for token in tokens if not 0 <= token < config.vocab_size)
        raise DataError(
            f"{where}: token {wrong} is outside the vocabulary of {config.vocab_size}; made by another tokenizer?"
        )
    if config.frame is None:
        raise DataError(f"{where}: the tower has no frame")
    return [config.frame.begin, *tokens, config.frame.end]


def padded_length(length: int, multiple: int) -> int:
    """The bucket of a length: the next multiple."""
    return -(-length // multiple) * multiple


def collate(
    examples: Sequence[Sequence[Segment]],
    towers: Mapping[str, TowerConfig],
    multiple: int = 1,
    ids: Sequence[str] = (),
) -> Batch:
    """Examples to one padded batch.

    Args:
        examples: segments in linear order, one list for each row.
        towers: configs by name, in spec order.
        multiple: rows are padded to a multiple of this many tokens, so that few shapes occur.
        ids: names of the examples, for messages.

    Raises:
        DataError: see `interleave`; or there are no tokens at all.
    """
    rows = [interleave(ex, towers, f"example {ids[i] if ids else i}") for i, ex in enumerate(examples)]
    present = [name for name in towers if any(name in row for row in rows)]
    if not present:
        raise DataError("a batch needs at least one segment")
    multimodal = [len(row) > 1 for row in rows]
    batches = {name: _stack([row.get(name) for row in rows], towers[name], multiple) for name in present}
    outputs = tuple(name for name in present if bool((batches[name].targets != IGNORE).any()))
    alike = len(set(multimodal)) == 1
    return Batch(batches, outputs, multimodal[0] if alike else torch.tensor(multimodal), _sees(rows))


def _sees(rows: Sequence[dict[str, Row]]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (target, source)
        for row in rows
        for target in row
        for source in row
        if target != source and row[source]["visible"][0] < row[target]["order"][-1]
    )


def _stack(rows: Sequence[Row | None], config: TowerConfig, multiple: int) -> TowerBatch:
    length = padded_length(max(len(row["tokens"]) for row in rows if row), multiple)
    padding = {
        "order": -1,
        "visible": -1,
        "segment": -1,
        "targets": IGNORE,
        "tokens": config.frame.end if config.frame else 0,
    }
    columns: dict[str, list[list[int]]] = {name: [] for name in _COLUMNS}
    for row in rows:
        for name, column in columns.items():
            values = row[name] if row else []
            column.append(values + [padding.get(name, 0)] * (length - len(values)))
    columns["positions"] = [list(range(length))] * len(rows)
    return TowerBatch(**{name: torch.tensor(column) for name, column in columns.items()})
