"""The engine of generation: schedules which rows advance, each through its turns by itself.

Every step advances, for each turn that some rows are at, one tower (or two that have one clock) by a token. What a
tower reads of the others was computed once, when their segments were complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from zippkit.batch.batch import Segment
from zippkit.batch.collate import declarations
from zippkit.errors import ZippkitError
from zippkit.generation.beam_rows import search_segment
from zippkit.generation.checks import check_turns
from zippkit.generation.decode_step import decode_step
from zippkit.generation.length_limits import Turn
from zippkit.generation.prefill import prefill
from zippkit.generation.prompt_pieces import PromptPieces
from zippkit.generation.request import Prompt, Request
from zippkit.generation.row import MAX_SEGMENTS, Piece, Row
from zippkit.generation.row_batch import RowBatch
from zippkit.generation.turn_changes import begin_turns
from zippkit.model.inference import inference
from zippkit.plan.sequence_layout import turns


class Generation(Iterator[Piece]):
    """A generation that is under way: iterating over it advances it by a token in every row.

    It is its own iterator: whoever stops and iterates again goes on where it was. Rows may be added at any time, also
    once all others have ended.
    """

    def __init__(
        self,
        request: Request,
        prompts: Sequence[Prompt],
        outputs: Sequence[Sequence[str]],
        seeds: Sequence[int],
        multimodal: bool | Sequence[bool] = True,
    ) -> None:
        self.request = request
        self.rows = [_row(request, i, *each) for i, each in enumerate(zip(prompts, outputs, seeds, strict=True))]
        """All rows that there ever were, by the number that pieces tell."""
        request.check_beams(turn for row in self.rows for turn in row.turns)
        batch = RowBatch(request, self.rows, _declared(request, self.rows, multimodal))
        self.batches = [batch]
        """Rows that run side by side. There is more than one batch only where a tower's cache cannot hand rows on."""
        self._waiting: deque[PromptPieces] = deque()
        self._pieces: Iterator[Piece] = iter(())
        with inference():
            prefill(batch, multimodal)
            begin_turns(batch, self.rows)

    @property
    def batch(self) -> RowBatch:
        """The first of the `batches`, as a rule the only one."""
        return self.batches[0]

    @property
    def segments(self) -> list[list[Segment]]:
        """For each row its new segments so far; the last one may not be complete."""
        return [row.segments for row in self.rows]

    def add(
        self,
        prompt: Prompt,
        outputs: Sequence[str] | None = None,
        seed: int = 0,
        multimodal: bool = True,
    ) -> int:
        """Add a row, whose prompt is run in pieces between the steps of the others; its answer is what it is alone.

        Args:
            prompt: the segments that are given.
            outputs: modalities to generate; those of `stream`, if left out.
            seed: of what is drawn, as for this row alone.
            multimodal: whether it passes the input projections.

        Returns:
            The row's number, by which pieces and `cancel` name it.

        Raises:
            ZippkitError: an output that `stream` was told nothing of.
            DataError: a prompt that a tower cannot take, or that leaves it no room to go on.
        """
        names, number = list(self.request.outputs if outputs is None else outputs), len(self.rows)
        for name in names:
            if name not in self.request.sampling:
                known = ", ".join(self.request.sampling) or "none"
                raise ZippkitError(f"outputs: {name!r} is not among those that `stream` was given: {known}")
        check_turns(self.request.zipped, f"prompt {number}", [segment.tower for segment in prompt], names)
        if self.request.choices and not prompt:
            raise ZippkitError(f"prompt {number} is empty; expected a segment, whose end tells what comes next")
        row = _row(self.request, number, prompt, [] if self.request.choices else names, seed)
        row.number = 0
        self.request.check_beams(row.turns)
        batch = RowBatch(self.request, [row], _declared(self.request, [row], multimodal))
        self._waiting.append(PromptPieces(batch, self.request.prefill_chunk))
        self.rows.append(row)
        return number

    def cancel(self, row: int) -> None:
        """End a row where it is; the others go on."""
        cancelled = self.rows[row]
        cancelled.cancel()
        for batch in self.batches:
            if any(each is cancelled for each in batch.rows):
                batch.decoding.forget(cancelled.number)
        self._waiting = deque(each for each in self._waiting if each.batch.rows[0] is not cancelled)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        while (piece := next(self._pieces, None)) is None:
            if not self._waiting and not any(row.turns for row in self.rows):
                raise StopIteration
            self._pieces = self._round()
        return piece

    def _round(self) -> Iterator[Piece]:
        """Run some of the prompts that wait, and advance every row by a step."""
        self._take_in()
        for batch in list(self.batches):
            batch.compact()
            by_turn: dict[Turn, list[Row]] = {}
            for row in batch.rows:
                if row.turns:
                    by_turn.setdefault(row.turns[0], []).append(row)
            for turn, at_turn in by_turn.items():
                # Whoever takes the pieces may have cancelled a row since.
                rows = [row for row in at_turn if row.turns]
                if rows:
                    yield from self._advance(batch, turn, rows)

    @inference()
    def _take_in(self) -> None:
        """Run as many tokens of prompts as are allowed between two steps; rows behind their prompts join the others."""
        left, most = self.request.prefill_chunk, self.request.max_rows
        while self._waiting and left > 0:
            self.batches = [batch for batch in self.batches if any(row.turns for row in batch.rows)] or self.batches[:1]
            if most is not None and sum(bool(row.turns) for batch in self.batches for row in batch.rows) >= most:
                return
            prompt = self._waiting[0]
            left -= max(1, prompt.run())
            if prompt.done:
                self._waiting.popleft()
                self._join(prompt.batch)

    def _join(self, new: RowBatch) -> None:
        """Let a row go on beside the others."""
        if not any(row.turns for batch in self.batches for row in batch.rows):
            self.batches = [new]
            return
        for batch in self.batches:
            if batch.moves and new.moves:
                batch.adopt(new)
                return
        self.batches.append(new)

    @inference()
    def _advance(self, batch: RowBatch, turn: Turn, rows: Sequence[Row]) -> list[Piece]:
        if self.request.sampling[turn[0]].beams > 1:
            return search_segment(batch, turn[0], rows)
        return decode_step(batch, turn, rows)


def _row(request: Request, number: int, prompt: Prompt, outputs: Sequence[str], seed: int) -> Row:
    return Row(
        request=request,
        number=number,
        index=number,
        prompt=prompt,
        turns=turns(outputs, request.graph.layout),
        random=torch.Generator().manual_seed(seed % 2**64),
        segment=len(prompt),
        choices_left=MAX_SEGMENTS if request.choices else 0,
    )


def _declared(request: Request, rows: Sequence[Row], multimodal: bool | Sequence[bool]) -> Tensor | bool:
    """Which rows pass the input projections: (B,) bool, or one bool for all."""
    kinds = [
        {segment.tower for segment in row.prompt} | {name for turn in row.turns for name in turn} | {*request.choices}
        for row in rows
    ]
    declared = declarations(multimodal, kinds, [f"prompt {row.index}" for row in rows])
    return declared.to(request.device) if isinstance(declared, Tensor) else declared
