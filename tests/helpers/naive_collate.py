"""Batches token by token, in plain Python: what `zippkit.batch.collate` computes with arrays, as it is to come out."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zippkit.batch.batch import COLUMNS, IGNORE, Batch, Features, Segment, TowerBatch
from zippkit.batch.collate import declarations
from zippkit.batch.columns import padded_length
from zippkit.errors import DataError, did_you_mean
from zippkit.plan.sequence_layout import Modality, SequenceLayout, turns
from zippkit.spec.kinds import TowerConfig


@dataclass
class Row:
    """One tower's tokens in one example: the columns of TowerBatch as lists of one length."""

    columns: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
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
        self["start"].extend([0] * n)
        self["visible"].extend(visible)
        self["segment"].extend([index] * n)
        self["offset"].extend(range(n))
        self["positions"].extend(range(before, before + n))
        self["position_ids"].extend(range(before, before + n))
        self["inserted"].extend([inserted] * n)
        self["targets"].extend([IGNORE] * n)
        self.segments.add(index)


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
    laid = Interleaving(towers, layout, where)
    index = 0
    for turn in turns([segment.tower for segment in segments], layout):
        laid.add(index, segments[index : index + len(turn)])
        index += len(turn)
    return laid.rows


class Interleaving:
    """Lays out one example, segment after segment."""

    def __init__(self, towers: Mapping[str, TowerConfig], layout: SequenceLayout, where: str) -> None:
        self.towers, self.layout, self.where = towers, layout, where
        self.modalities = layout.modalities(towers)
        self.rows: dict[str, Row] = {}
        self.order = 0
        self._waiting: dict[str, list[tuple[int, int]]] = {}
        """For each tower, the slots that links insert before its next segment: (segment index, number)."""

    def add(self, index: int, segments: Sequence[Segment]) -> None:
        """Append one segment, or two simultaneous ones."""
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
            row["position_ids"][before:] = order
        # An encoder counts positions from its segment's begin.
        self._check_length(
            modality.tower, max(row["position_ids"][-1] + 1, len(row)) if config.predicts else len(tokens)
        )

    def _insert(self, tower: str) -> None:
        """Give a tower the slots that links insert before its next segment.

        They have that segment's order, so a token in between sees neither them nor, by them, that the segment follows.
        """
        for index, n in self._waiting.pop(tower, []):
            row, frame = self.rows.setdefault(tower, Row()), self.towers[tower].frame
            before, order = len(row), [self.order] * n
            row.add(index, [frame.end if frame else 0] * n, order, order, inserted=True)
            if tower in self.layout.shared:
                row["position_ids"][before:] = order
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
