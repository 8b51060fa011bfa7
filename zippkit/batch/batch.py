"""Segments to padded batches: each tower's own tokens densely packed, each with its place in the whole sequence."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippkit.errors import DataError, did_you_mean
from zippkit.plan.sequence_layout import Modality, SequenceLayout, turns
from zippkit.spec.kinds import TowerConfig

IGNORE = -100
"""A target that no loss is taken on."""


@dataclass(frozen=True)
class Segment:
    """A run of one modality, without its begin and end ids."""

    tower: str
    """The tower that reads it, or a modality that some tower's vocabulary was extended by."""
    tokens: Any
    """Token ids: a list, an array or a tensor of one dimension; or a continuous tower's inputs, such as a waveform."""
    loss: bool = True
    """Whether these tokens (and the end id) are to be predicted; continuous inputs never are."""


@dataclass(frozen=True)
class Features:
    """What a continuous tower is fed: one entry for each of its segments in the batch."""

    values: Tensor
    """(N, ...) such as waveforms (N, samples) or pixels (N, channels, height, width); shorter ones end in zeros."""
    lengths: Tensor
    """(N,) true size of the second dimension."""
    entry: Tensor
    """(B, T) which of the N a state belongs to; 0 at padding."""

    def to(self, device: torch.device | str) -> Self:
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


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
    """(B, T) which segment of the row the token belongs to; -1 marks padding. A place that a link inserts carries the
    number of the segment that it stands for, and the order of the target's own segment that it is inserted before."""
    offset: Tensor
    """(B, T) place within its segment."""
    positions: Tensor
    """(B, T) place among the tower's own tokens, and its slot in the tower's cache; padding counts on."""
    places: Tensor
    """(B, T) what position embeddings count: the positions, or the order where towers share their attention."""
    inserted: Tensor
    """(B, T) bool: the place is a link's, and so is its state; the token there means nothing."""
    targets: Tensor
    """(B, T) the next token of the same segment; IGNORE at its end, at padding and where no loss is asked."""
    n_segments: int = 1
    """Most segments of this tower in one row."""
    features: Features | None = None
    """Of a continuous tower, whose tokens are all 0."""
    following: Tensor | None = None
    """(B, T) at a segment's last token, the modality of what comes next (its place among all of them; their number
    where nothing does), and IGNORE elsewhere; only for models that learn it."""

    def to(self, device: torch.device | str) -> Self:
        moved = self.mapped(lambda column: column.to(device, non_blocking=True))
        features = self.features.to(device) if self.features else None
        following = None if self.following is None else self.following.to(device, non_blocking=True)
        return replace(moved, features=features, following=following)

    @classmethod
    def alone(cls, tokens: Tensor) -> Self:
        """(B, T) tokens of a tower by itself, one segment a row, with nothing to predict."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return cls(
            tokens=tokens,
            order=positions,
            visible=positions,
            segment=torch.zeros_like(tokens),
            offset=positions,
            positions=positions,
            places=positions,
            inserted=torch.zeros_like(tokens, dtype=torch.bool),
            targets=torch.full_like(tokens, IGNORE),
        )

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Every (B, T) column changed alike."""
        columns: dict[str, Any] = {name: change(getattr(self, name)) for name in _COLUMNS}
        return replace(self, **columns)

    def part(self, which: slice) -> Self:
        """Some of the columns of tokens."""
        return self.mapped(lambda column: column[:, which])

    def hidden_before(self, counts: Sequence[int]) -> Self:
        """The first tokens of each row, so many, turned into padding."""
        n_hidden = torch.tensor(counts, device=self.order.device)[:, None]
        hidden = torch.arange(self.order.shape[1], device=n_hidden.device) < n_hidden
        order, visible, segment = (
            column.masked_fill(hidden, -1) for column in (self.order, self.visible, self.segment)
        )
        return replace(self, order=order, visible=visible, segment=segment)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Runs of tokens, one after the other."""
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts], dim=1) for name in _COLUMNS}
        return replace(parts[0], **columns)


@dataclass(frozen=True)
class Batch:
    """Examples as the towers see them."""

    towers: dict[str, TowerBatch]
    """Only towers that have tokens in some row."""
    outputs: tuple[str, ...]
    """Towers on which a loss is asked, in spec order; the plan is pruned to them."""
    multimodal: Tensor | bool
    """(B,) rows that were declared multimodal, which pass the input projections; a bool where all rows are alike."""
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


_COLUMNS = ("tokens", "order", "visible", "segment", "offset", "positions", "places", "inserted", "targets")


@dataclass
class Row:
    """One tower's tokens in one example: the columns of TowerBatch as lists of one length."""

    columns: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    inputs: list[NDArray[np.float32]] = field(default_factory=list)
    """A continuous tower's inputs, segment by segment."""
    segments: set[int] = field(default_factory=set)

    def __getitem__(self, column: str) -> list[int]:
        return self.columns[column]

    def __len__(self) -> int:
        return len(self.columns["tokens"])

    def add(
        self, index: int, tokens: Sequence[int], order: Sequence[int], visible: Sequence[int], inserted: bool = False
    ) -> None:
        """Append tokens of segment ``index`` that nothing predicts."""
        n, before = len(tokens), len(self)
        self["tokens"].extend(tokens)
        self["order"].extend(order)
        self["visible"].extend(visible)
        self["segment"].extend([index] * n)
        self["offset"].extend(range(n))
        self["positions"].extend(range(before, before + n))
        self["places"].extend(range(before, before + n))
        self["inserted"].extend([inserted] * n)
        self["targets"].extend([IGNORE] * n)
        self.segments.add(index)


class _Interleaving:
    """Lays out one example, segment after segment."""

    def __init__(self, towers: Mapping[str, TowerConfig], layout: SequenceLayout, where: str) -> None:
        self.towers, self.layout, self.where = towers, layout, where
        self.modalities = layout.modalities(towers)
        self.rows: dict[str, Row] = {}
        self.order = 0
        self._waiting: dict[str, list[tuple[int, int]]] = {}
        """For each tower, the places that links insert before its next segment: what they stand for, and how many."""

    def add(self, index: int, segments: Sequence[Segment]) -> None:
        """Append one segment, or two that are simultaneous."""
        framed = [self._framed(index + i, segment) for i, segment in enumerate(segments)]
        ticks = {len(tokens) for _, tokens, _ in framed}
        if len(ticks) > 1:
            names = " and ".join(segment.tower for segment in segments)
            raise DataError(
                f"{self.where}: segments {index} and {index + 1}: {names} are simultaneous (`clock: sync`), but have "
                f"{' and '.join(str(len(tokens) - 2) for _, tokens, _ in framed)} tokens; expected as many"
            )
        (n,) = ticks
        # What is simultaneous may be seen at once: each tick counts two, and its tokens are visible from the first.
        step = len(segments)
        order = range(self.order + step - 1, self.order + step * n, step)
        for i, ((modality, tokens, inputs), segment) in enumerate(zip(framed, segments, strict=True)):
            self._insert(modality.tower)
            self._place(index + i, modality, tokens, inputs, list(order), step, segment.loss)
        self.order += step * n
        for i, (modality, tokens, _) in enumerate(framed):
            for insert in self.layout.inserts:
                if insert.source == modality.tower:
                    self._waiting.setdefault(insert.target, []).append((index + i, insert.n_slots(len(tokens))))

    def _place(
        self,
        index: int,
        modality: Modality,
        tokens: list[int],
        inputs: NDArray[np.float32] | None,
        order: list[int],
        step: int,
        loss: bool,
    ) -> None:
        config = self.towers[modality.tower]
        row = self.rows.setdefault(modality.tower, Row())
        visible = [o - step + 1 for o in order] if config.causal else [order[-1]] * len(order)
        before = len(row)
        row.add(index, tokens, order, visible)
        if inputs is not None:
            row.inputs.append(inputs)
        elif loss and config.predicts:
            row["targets"][before:] = [*tokens[1:], IGNORE]
        if modality.tower in self.layout.shared:
            row["places"][before:] = order
        # An encoder counts positions from its segment's begin.
        self._check_length(modality.tower, max(row["places"][-1] + 1, len(row)) if config.predicts else len(tokens))

    def _insert(self, tower: str) -> None:
        """Give the tower the places that links want of it before its next segment. They are of that segment's order: so
        whoever stands between sees neither them nor, by them, that the segment will follow."""
        for index, n in self._waiting.pop(tower, []):
            row, frame = self.rows.setdefault(tower, Row()), self.towers[tower].frame
            before, order = len(row), [self.order] * n
            row.add(index, [frame.end if frame else 0] * n, order, order, inserted=True)
            if tower in self.layout.shared:
                row["places"][before:] = order
            self._check_length(tower, len(row))

    def _check_length(self, tower: str, length: int) -> None:
        limit = self.towers[tower].max_len
        if limit is not None and length > limit:
            raise DataError(f"{self.where}: {length} {tower} tokens; the tower takes at most {limit}")

    def _framed(self, index: int, segment: Segment) -> tuple[Modality, list[int], NDArray[np.float32] | None]:
        where = f"{self.where}: segment {index}"
        if segment.tower not in self.modalities:
            raise DataError(
                f"{where}: no tower is called {segment.tower!r}{did_you_mean(segment.tower, self.modalities)}"
            )
        modality = self.modalities[segment.tower]
        config, where = self.towers[modality.tower], f"{where} ({segment.tower})"
        if not config.continuous:
            return modality, _token_ids(segment, modality, where), None
        try:
            inputs = np.asarray(segment.tokens, dtype=np.float32)
            n_states = config.n_states(inputs)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {error}") from error
        return modality, [0] * n_states, inputs


def interleave(
    segments: Sequence[Segment],
    towers: Mapping[str, TowerConfig],
    where: str = "example",
    layout: SequenceLayout | None = None,
) -> dict[str, Row]:
    """Frame each segment and split the sequence into each tower's own tokens.

    Args:
        segments: in linear order.
        towers: configs by name.
        where: what messages call this example.
        layout: what the composition's links ask of a sequence.

    Raises:
        DataError: an unknown tower, an id outside its vocabulary, a sequence past its maximum length, segments that
            are simultaneous and not of one length.
    """
    layout = layout or SequenceLayout()
    laid = _Interleaving(towers, layout, where)
    index = 0
    for turn in turns([segment.tower for segment in segments], layout):
        laid.add(index, segments[index : index + len(turn)])
        index += len(turn)
    return laid.rows


def _token_ids(segment: Segment, modality: Modality, where: str) -> list[int]:
    """The segment's ids in the tower's vocabulary, begin and end included."""
    given = segment.tokens.tolist() if hasattr(segment.tokens, "tolist") else segment.tokens
    try:
        tokens = [operator.index(token) for token in given]
    except TypeError as error:
        raise DataError(f"{where}: expected a run of whole numbers as tokens: {error}") from error
    size = modality.vocab_size
    if size is not None and tokens and not (min(tokens) >= 0 and max(tokens) < size):
        wrong = next(token for token in tokens if not 0 <= token < size)
        raise DataError(f"{where}: token {wrong} is outside the vocabulary of {size}; made by another tokenizer?")
    if modality.frame is None:
        raise DataError(f"{where}: the tower has no frame")
    return [modality.first_id + token for token in (modality.frame.begin, *tokens, modality.frame.end)]


def padded_length(length: int, multiple: int) -> int:
    """The bucket of a length: the next multiple."""
    return -(-length // multiple) * multiple


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
    return Batch(batches, outputs, declared, _sees(rows))


def declarations(
    multimodal: bool | Sequence[bool], modalities: Sequence[Collection[str]], where: Sequence[str]
) -> Tensor | bool:
    """What is declared of each row, as `Batch.multimodal` has it.

    Args:
        multimodal: one declaration for all rows, or one for each.
        modalities: for each row, those of its segments.
        where: what messages call each row.

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


def _with_following(
    batches: Mapping[str, TowerBatch],
    rows: Sequence[Mapping[str, Row]],
    examples: Sequence[Sequence[Segment]],
    modalities: Mapping[str, Modality],
    layout: SequenceLayout,
) -> dict[str, TowerBatch]:
    place = {name: i for i, name in enumerate(modalities)}
    following = {name: torch.full_like(batch.tokens, IGNORE) for name, batch in batches.items()}
    for b, (row, example) in enumerate(zip(rows, examples, strict=True)):
        names = [segment.tower for segment in example]
        taken = turns(names, layout)
        # Of an empty row nothing is told.
        later = [*(place[turn[0]] for turn in taken[1:]), *([len(place)] if taken else [])]
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
    """Whether some place of the target comes after a token of the source."""
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
    columns: dict[str, list[list[int]]] = {name: [] for name in _COLUMNS}
    for row in rows:
        for name, column in columns.items():
            values = row[name] if row else []
            column.append(values + [padding.get(name, 0)] * (length - len(values)))
    for name in ("positions", "places"):
        # Padding counts on, so that no position embedding meets anything unusual.
        for values, row in zip(columns[name], rows, strict=True):
            n = len(row) if row else 0
            values[n:] = range(n, length)
    tensors = {name: torch.tensor(column) for name, column in columns.items()}
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
