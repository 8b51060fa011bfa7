"""One row of a generation: its segments, its positions, what it may still generate, and how it goes on or ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from zippkit.batch.batch import Segment
from zippkit.generation.length_limits import Progress, Turn
from zippkit.generation.request import Prompt, Request
from zippkit.plan.sequence_layout import turns

MAX_SEGMENTS = 8
"""The most segments of a row for which the model itself chooses what comes next."""


@dataclass(frozen=True)
class Piece:
    """One new token, or the end of a segment."""

    row: int
    segment: int
    """Which of the row's new segments, from 0."""
    modality: str
    token: int | None
    """In the modality's own ids; None where the segment ends."""
    score: float | None = None
    """Of a segment that a beam search found, at its end: its log-probability over its length to a power."""


@dataclass(kw_only=True)
class Row(Progress):
    """The state of one row."""

    request: Request
    number: int
    """Its place in the batch, which is another row's once it has ended."""
    index: int
    """Its number in the generation, by which pieces tell of it."""
    prompt: Prompt
    turns: list[Turn]
    """Turns that are to come, the present one first; none once the row has ended or was cancelled."""
    random: torch.Generator
    choices_left: int = 0
    """How many turns the model itself may still add."""
    done: list[Segment] = field(default_factory=list)
    """Complete new segments."""
    segment: int = 0
    """Number of the next segment, the prompt's counted."""
    seen: dict[str, Tensor] = field(default_factory=dict)
    """For a repetition penalty: (V,) bool by modality, which ids its tower was fed so far, begin and end included."""
    found: list[list[int]] = field(default_factory=list)
    """Tokens generated in this turn, for each modality of it, in its own ids."""
    ahead: list[list[int]] = field(default_factory=list)
    """Tokens to be fed, step by step, for each modality of this turn, in its tower's ids."""
    step: int = 0
    """Steps fed in this turn."""
    limit: int = 0
    """Longest segment of this turn."""
    ending: bool = False
    """Nothing more is chosen in this turn: what is ahead ends with the end ids."""

    @property
    def segments(self) -> list[Segment]:
        """New segments so far; those of the present turn may not be complete."""
        if not self.turns or not self.found:
            return list(self.done)
        return self.done + [Segment(n, list(found)) for n, found in zip(self.turns[0], self.found, strict=True)]

    def cancel(self) -> None:
        """End the row where it is."""
        self.done, self.turns = self.segments, []

    def begin(self) -> None:
        """Start the next turn."""
        request, turn = self.request, self.turns[0]
        limit = min(request.max_tokens[name] for name in turn)
        self.limit = request.limits.longest(request.towers([turn]), self.later(), self, limit)
        self.step, self.ending = 0, False
        self.found = [[] for _ in turn]
        self.ahead = [[request.frame_ids(name)[0] for name in turn]]
        for name in turn:
            self.mark_seen(name, request.frame(name).begin)

    def take(self, chosen: Sequence[int]) -> list[Piece]:
        """Go on with the chosen tokens, in the towers' ids, or end the turn; the pieces that this gives."""
        turn = self.turns[0]
        ends = [self.request.frame_ids(name)[1] for name in turn]
        goes_on = self.limit > 0 and not any(token == end for token, end in zip(chosen, ends, strict=True))
        pieces = self._append(chosen) if goes_on else []
        # After the last token that there is room for, the end needs no choice.
        self.ending = not goes_on or self.step >= self.limit
        self.ahead = [list(chosen)] * goes_on + [ends] * self.ending
        if self.ending:
            pieces += [Piece(self.index, len(self.done) + k, name, None) for k, name in enumerate(turn)]
        return pieces

    def _append(self, chosen: Sequence[int]) -> list[Piece]:
        pieces = []
        for k, (name, token) in enumerate(zip(self.turns[0], chosen, strict=True)):
            own = token - self.request.modalities[name].first_id
            self.found[k].append(own)
            self.mark_seen(name, own)
            pieces.append(Piece(self.index, len(self.done) + k, name, own))
        return pieces

    def skip_unread(self) -> None:
        """Where nobody reads the ending turn, run no more of it; its tokens keep their places in the sequence."""
        if self.ending and not self.is_read():
            self.order += len(self.turns[0]) * len(self.ahead)
            self.ahead.clear()

    def finish(self) -> None:
        """Complete the present turn: its places wait for the next segment of each target."""
        turn, modalities = self.turns.pop(0), self.request.modalities
        for k, (name, found) in enumerate(zip(turn, self.found, strict=True)):
            for insert in self.request.graph.layout.inserts:
                if insert.source == modalities[name].tower:
                    self.waiting[insert.target].append((self.segment + k, insert.n_slots(len(found) + 2)))
            self.mark_seen(name, self.request.frame(name).end)
            self.done.append(Segment(name, found))
        self.segment += len(turn)

    def to_come(self, given: Sequence[Turn]) -> list[str]:
        """The towers of these turns, and of what the model may choose after them."""
        chosen = [self.request.turn_of(name) for name in self.request.choices if self.choices_left]
        return self.request.towers([*given, *chosen])

    def later(self) -> list[str]:
        """The towers that advance after the present turn, or may."""
        return self.to_come(self.turns[1:])

    def is_read(self) -> bool:
        """Whether anything reads the present segments once they are complete."""
        here, later = self.request.towers(self.turns[:1]), self.later()
        return (
            self.choices_left > 0
            or any(name in later for name in here)
            or any(site.source in here and site.target in later for site in self.request.graph.sites)
        )

    def follow(self, logits: Tensor) -> None:
        """Add the turn that the model predicts, by (N + 1,) logits, unless nothing follows or it cannot follow."""
        if self.choices_left:
            self.choices_left -= 1
            names, request = list(self.request.modalities), self.request
            able = [*(names.index(name) for name in request.choices), len(names)]
            best = able[int(logits[able].argmax())]
            if best < len(names) and self._can_follow(turn := request.turn_of(names[best])):
                self.turns.append(turn)

    def _can_follow(self, turn: Turn) -> bool:
        """Whether the towers have room for a turn, and it would be a turn of its own."""
        layout = self.request.graph.layout
        given = [segment.tower for segment in (*self.prompt, *self.done)]
        apart = turns([*given, *turn], layout) == [*turns(given, layout), turn]
        return apart and self.request.limits.fits(self.request.towers([turn]), self)

    def mark_seen(self, modality: str, token: int) -> None:
        """Count one more of a modality's own ids as seen, where that is kept."""
        if modality in self.seen:
            self.seen[modality][token] = True

    def seen_ids(self, modality: str, size: int) -> Tensor:
        """(size,) bool: which of a modality's own ids the tower was fed so far; kept from the first call on."""
        if modality not in self.seen:
            seen, frame = torch.zeros(size, dtype=torch.bool), self.request.frame(modality)
            for segment in (*self.prompt, *self.done):
                if segment.tower == modality:
                    seen[torch.as_tensor(segment.tokens, dtype=torch.long)] = True
                    seen[[frame.begin, frame.end]] = True
            if self.turns and modality in self.turns[0]:
                seen[[frame.begin, *self.found[self.turns[0].index(modality)]]] = True
            self.seen[modality] = seen.to(self.request.device)
        return self.seen[modality]

    def branch(self, number: int) -> Self:
        """A row of its own that goes on from here, at another place of another batch."""
        seen = {name: each.clone() for name, each in self.seen.items()}
        return replace(self, number=number, positions=self.positions.copy(), seen=seen)
