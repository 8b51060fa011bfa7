"""Beam search over one segment, on any function that gives the next token's logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Step = Callable[[list[int], list[int], list[int]], Tensor]
"""Called with the beams that go on (numbers of the beams before), their last tokens, and each one's row. Gives their
log-probabilities (N, V); the beams are numbered anew in this order."""


@dataclass
class _Row:
    """The hypotheses of one row."""

    n_beams: int
    length_penalty: float
    running: list[tuple[float, list[int]]]
    """Log-probability and tokens of those that have not ended."""
    ended: list[tuple[float, list[int]]] = field(default_factory=list)
    """Score and tokens of those that have, the best first."""

    def score(self, log_probability: float, n_tokens: int) -> float:
        scored: float = log_probability / n_tokens**self.length_penalty
        return scored

    def end(self, log_probability: float, tokens: list[int], n_tokens: int) -> None:
        self.ended.append((self.score(log_probability, n_tokens), tokens))
        self.ended.sort(key=lambda each: -each[0])
        del self.ended[self.n_beams :]

    def is_done(self, n_tokens: int) -> bool:
        """Whether no running hypothesis, as long as it is now, is better than the worst that ended."""
        if not self.running:
            return True
        best = self.score(self.running[0][0], n_tokens)
        return len(self.ended) == self.n_beams and best <= self.ended[-1][0]


def beam_search(
    step: Step, begin: int, end: int, limits: Sequence[int], n_beams: int, length_penalty: float
) -> list[tuple[list[int], float]]:
    """The best segment of each row, as transformers searches it (``early_stopping=False``).

    Args:
        step: runs the model.
        begin: id that a segment begins with.
        end: id that ends it.
        limits: for each row, its longest segment; a hypothesis of that length ends without its end id's probability.
        n_beams: beam width, the number of hypotheses that are kept.
        length_penalty: exponent of the length by which a log-probability is divided, the end id counted.

    Returns:
        For each row its tokens, without begin and end, and their score.
    """
    rows = [_Row(n_beams, length_penalty, [(0.0, [])]) for _ in limits]
    for row, limit in zip(rows, limits, strict=True):
        if limit <= 0:
            row.running, row.ended = [], [(0.0, [])]
    places = {i: [i] for i, row in enumerate(rows) if row.running}
    """Of each row that goes on, the numbers of its beams in the step before."""
    while places:
        parents = [beam for beams in places.values() for beam in beams]
        owners = [i for i, beams in places.items() for _ in beams]
        tokens = [(hypothesis[1] or [begin])[-1] for i in places for hypothesis in rows[i].running]
        found = step(parents, tokens, owners)
        places = _extend(rows, owners, found, end, limits)
    return [(row.ended[0][1], row.ended[0][0]) for row in rows]


def _extend(
    rows: Sequence[_Row], owners: Sequence[int], found: Tensor, end: int, limits: Sequence[int]
) -> dict[int, list[int]]:
    """Lengthen every hypothesis by a token.

    Returns:
        For each row that goes on, the numbers of its beams in this step.
    """
    places: dict[int, list[int]] = {}
    for i in dict.fromkeys(owners):
        row, first, n_running = rows[i], owners.index(i), len(rows[i].running)
        before = torch.tensor([p for p, _ in row.running], dtype=found.dtype, device=found.device)
        total = found[first : first + n_running] + before[:, None]
        best = total.flatten().topk(min(2 * row.n_beams, total.numel()))
        running: list[tuple[float, list[int]]] = []
        beams: list[int] = []
        n_tokens = len(row.running[0][1]) + 1
        for rank, (value, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            beam, token = divmod(index, found.shape[1])
            tokens = row.running[beam][1] + [token] * (token != end)
            if token == end or n_tokens >= limits[i]:
                # An end counts only where it is one of the best, as many as there are beams.
                if rank < row.n_beams:
                    row.end(value, tokens, n_tokens)
            elif len(running) < row.n_beams:
                running.append((value, tokens))
                beams.append(first + beam)
        row.running = running
        if not row.is_done(n_tokens):
            places[i] = beams
    return places
