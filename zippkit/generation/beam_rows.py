"""Beam search in a generation: the best segment goes on in the row itself.

Hypotheses stand side by side in the row's own cache (`zippkit.generation.beam_tree`); where a tower's cache cannot hold
them so, each is a row of a batch of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from zippkit.generation.beam_search import beam_search
from zippkit.generation.beam_tree import BeamTree
from zippkit.generation.new_tokens import next_tokens
from zippkit.generation.row import Piece, Row
from zippkit.generation.row_batch import RowBatch
from zippkit.generation.sampling import penalised
from zippkit.generation.turn_changes import finish_turns
from zippkit.model.kv_cache import RowCache
from zippkit.model.next_modality import PREFIX
from zippkit.plan.plan import Wanted


def search_segment(batch: RowBatch, modality: str, rows: Sequence[Row]) -> list[Piece]:
    """Generate a segment by beam search in rows that begin it, and run the best one where something reads it."""
    request = batch.request
    frame, sampling = request.frame(modality), request.sampling[modality]
    tower = request.modalities[modality].tower
    branching = request.model.tower(tower).takes_branches and isinstance(batch.decoding.caches[tower], RowCache)
    step = (BeamTree if branching else BeamRows)(batch, modality, rows).step
    limits = [row.limit for row in rows]
    found = beam_search(step, frame.begin, frame.end, limits, sampling.beams, sampling.length_penalty)
    pieces: list[Piece] = []
    for row, (tokens, score) in zip(rows, found, strict=True):
        row.found, number = [tokens], len(row.done)
        pieces += [Piece(row.index, number, modality, token) for token in tokens]
        pieces.append(Piece(row.index, number, modality, None, score))
    predicted = _run_best(batch, modality, rows)
    finish_turns(batch, rows, predicted)
    return pieces


def _run_best(batch: RowBatch, modality: str, rows: Sequence[Row]) -> dict[int, Tensor]:
    """Feed the segments that were found, begin and end included, where something reads them.

    Returns:
        By row number, (N + 1,) logits of the next modality, where the model chooses.
    """
    by_length: dict[int, list[Row]] = {}
    for row in rows:
        if row.is_read():
            by_length.setdefault(len(row.found[0]), []).append(row)
    predicted: dict[int, Tensor] = {}
    for alike in by_length.values():
        predicted |= _run_alike(batch, modality, alike)
    for row in rows:
        row.order += len(row.found[0]) + 2
    return predicted


def _run_alike(batch: RowBatch, modality: str, rows: Sequence[Row]) -> dict[int, Tensor]:
    """Feed segments of one length."""
    kind, (begin, end) = batch.request.modalities[modality], batch.request.frame_ids(modality)
    columns = {
        row.number: next_tokens(row, [begin, *(token + kind.first_id for token in row.found[0]), end]) for row in rows
    }
    predicting = [row.number for row in rows if row.choices_left]
    plan = batch.step_plan((modality,), rows, with_heads=False, predicts_next=bool(predicting))
    logits = batch.run(plan, {kind.tower: batch.tower_batch(kind.tower, columns)}, rows)
    return {number: logits[PREFIX + kind.tower][number, -1] for number in predicting}


class BeamRows:
    """The hypotheses of one beam search, as the rows of a batch of their own."""

    def __init__(self, batch: RowBatch, modality: str, rows: Sequence[Row]) -> None:
        self._batch, self._modality, self._roots = batch, modality, rows
        self._kind = batch.request.modalities[modality]
        tower = self._kind.tower
        self._plan = batch.request.zipped.plan.prune(Wanted(heads={tower}, given=batch.given([tower])))
        self._owners: list[int] | None = None

    def step(self, parents: list[int], tokens: list[int], owners: list[int]) -> Tensor:
        """Log-probabilities (N, V) after one token more; see `zippkit.generation.beam_search.Step`."""
        tower, first_id = self._kind.tower, self._kind.first_id
        at = parents if self._owners else [self._roots[parent].number for parent in parents]
        self._batch = batch = self._batch.branch(tower, at, same_rows=owners == self._owners)
        self._owners = owners
        columns = {}
        for row, token in zip(batch.rows, tokens, strict=True):
            columns[row.number] = next_tokens(row, [token + first_id])
            row.mark_seen(self._modality, token)
        logits = batch.run(self._plan, {tower: batch.tower_batch(tower, columns)}, batch.rows)
        for row in batch.rows:
            row.order += 1
            row.step += 1
        own, seen = batch.own_logits(self._modality, logits[tower][:, -1])
        # As transformers does: a penalised log-probability is not made a probability again.
        return penalised(own.log_softmax(dim=-1), seen, batch.request.sampling[self._modality].repetition_penalty)
