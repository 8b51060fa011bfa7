"""The engine of generation: schedules which rows advance, each through its turns by itself.

Every step advances, for each turn that some rows are at, one tower (or two that have one clock) by a token. What a
tower reads of the others was computed once, when their segments were complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from zippkit.batch.batch import Segment
from zippkit.batch.collate import declarations
from zippkit.generation.beam_rows import search_segment
from zippkit.generation.decode_step import decode_step
from zippkit.generation.length_limits import Turn
from zippkit.generation.prefill import prefill
from zippkit.generation.request import Prompt, Request
from zippkit.generation.row import MAX_SEGMENTS, Piece, Row
from zippkit.generation.row_batch import RowBatch
from zippkit.generation.turn_changes import begin_turns
from zippkit.plan.sequence_layout import turns


class Generation(Iterator[Piece]):
    """A generation that is under way: iterating over it advances it by a token in every row.

    It is its own iterator: whoever stops and iterates again goes on where it was.
    """

    def __init__(
        self,
        request: Request,
        prompts: Sequence[Prompt],
        outputs: Sequence[Sequence[str]],
        seeds: Sequence[int],
        multimodal: bool | Sequence[bool] = True,
    ) -> None:
        rows = _rows(request, prompts, outputs, seeds)
        request.check_beams(turn for row in rows for turn in row.turns)
        self.batch = RowBatch(request, rows, _declared(request, rows, multimodal))
        """The rows, with their caches and memories."""
        self._pieces = self._schedule()
        with torch.inference_mode():
            prefill(self.batch, multimodal)
            begin_turns(self.batch, rows)

    @property
    def segments(self) -> list[list[Segment]]:
        """For each row its new segments so far; the last one may not be complete."""
        return [row.segments for row in self.batch.rows]

    def cancel(self, row: int) -> None:
        """End a row where it is; the others go on."""
        self.batch.rows[row].cancel()
        self.batch.decoding.forget(row)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def _schedule(self) -> Iterator[Piece]:
        while any(row.turns for row in self.batch.rows):
            by_turn: dict[Turn, list[Row]] = {}
            for row in self.batch.rows:
                if row.turns:
                    by_turn.setdefault(row.turns[0], []).append(row)
            for turn, at_turn in by_turn.items():
                # Whoever takes the pieces may have cancelled a row since.
                rows = [row for row in at_turn if row.turns]
                if rows:
                    yield from self._advance(turn, rows)

    @torch.inference_mode()
    def _advance(self, turn: Turn, rows: Sequence[Row]) -> list[Piece]:
        if self.batch.request.sampling[turn[0]].beams > 1:
            return search_segment(self.batch, turn[0], rows)
        return decode_step(self.batch, turn, rows)


def _rows(
    request: Request, prompts: Sequence[Prompt], outputs: Sequence[Sequence[str]], seeds: Sequence[int]
) -> list[Row]:
    return [
        Row(
            request=request,
            number=number,
            prompt=prompt,
            turns=turns(names, request.graph.layout),
            random=torch.Generator().manual_seed(seed % 2**64),
            segment=len(prompt),
            choices_left=MAX_SEGMENTS if request.choices else 0,
        )
        for number, (prompt, names, seed) in enumerate(zip(prompts, outputs, seeds, strict=True))
    ]


def _declared(request: Request, rows: Sequence[Row], multimodal: bool | Sequence[bool]) -> Tensor | bool:
    """Which rows pass the input projections: (B,) bool, or one bool for all."""
    kinds = [
        {segment.tower for segment in row.prompt} | {name for turn in row.turns for name in turn} | {*request.choices}
        for row in rows
    ]
    declared = declarations(multimodal, kinds, [f"prompt {row.number}" for row in rows])
    return declared.to(request.device) if isinstance(declared, Tensor) else declared
