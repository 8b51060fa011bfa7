"""C4: what is generated token by token, with caches and memories, is what the whole sequence gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.errors import DataError
from zippkit.evaluation.certificates.probe import Draws, draws_for, to_device, with_zero_inits_randomized
from zippkit.evaluation.certificates.report import RefutedError
from zippkit.generation.api import stream
from zippkit.generation.request import Prompt
from zippkit.generation.row import Piece
from zippkit.model.tower import Tower
from zippkit.plan.plan import Wanted
from zippkit.plan.sequence_layout import turns
from zippkit.spec.sampling import Sampling

N_ROWS = 4
LONGEST = 4
"""Tokens of a segment."""
BEAMS = 3
ALLOWED = 2e-5
"""Tolerance relative to the largest logit: some towers round to float32 inside."""
ALLOWED_IN_BF16 = 0.1
"""The same where a tower is run in bfloat16, whose numbers are up to 0.4 per cent apart, in every layer anew."""


@torch.no_grad()
def steps_equal_the_whole(zipped: Composition) -> str:
    """Certificate C4: rows with prompts and outputs in random orders beside each other, drawn tokens, then beams.

    Raises:
        RefutedError: names the modality and the place whose logits differ.
    """
    as_run = replace(zipped, model=with_zero_inits_randomized(zipped.model))
    # In float64, so that what differs is a mistake and not the order of a sum.
    zipped = replace(zipped, model=with_zero_inits_randomized(zipped.model).double())
    draws = draws_for(zipped)
    able = [name for name in draws.modalities if _generates(zipped, name)]
    if not able:
        return "no tower generates"
    case = _Case(zipped, draws, able, ALLOWED)
    case.sample_all()
    searched = [name for name in able if _searches(zipped, name)]
    for name in searched:
        case.search(name)
    beams = f"{BEAMS} beams of {', '.join(searched)}" if searched else "no beams"
    return (
        f"{case.n_compared} steps of {', '.join(able)}, in float64 within {case.worst:.1e} of the largest logit; "
        f"{beams}{_in_bf16(as_run, able)}"
    )


def _in_bf16(as_run: Composition, able: Sequence[str]) -> str:
    """Where towers are held in bfloat16: the same as they are run, as near as that can be; in words."""
    names = [name for name in as_run.graph.towers if as_run.model.tower(name).dtype == torch.bfloat16]
    if not names:
        return ""
    case = _Case(as_run, draws_for(as_run), able, ALLOWED_IN_BF16)
    case.sample_all()
    return f"; with {', '.join(names)} in bfloat16 within {case.worst:.1e}"


def _generates(zipped: Composition, name: str) -> bool:
    modality = zipped.graph.modalities[name]
    tower = zipped.model.tower(modality.tower)
    has_cache = type(tower).new_cache is not Tower.new_cache
    return modality.frame is not None and tower.config.causal and has_cache


def _searches(zipped: Composition, name: str) -> bool:
    """Whether beams can be compared: by the tower, and because it advances alone."""
    tower = zipped.graph.modalities[name].tower
    alone = not any(tower in clock for clock in zipped.graph.layout.clocks)
    return alone and type(zipped.model.tower(tower)).reorder_cache is not Tower.reorder_cache


class _Case:
    """A composition under test, and the largest difference found so far."""

    def __init__(self, zipped: Composition, draws: Draws, able: Sequence[str], allowed: float) -> None:
        self.zipped, self.draws, self.able, self.allowed = zipped, draws, able, allowed
        self.n_compared, self.worst = 0, 0.0

    def prompts(self, outputs: Sequence[Sequence[str]]) -> list[Prompt]:
        """Random segments in random orders; shorter ones, or none, where a tower has no room for more."""
        names = list(self.draws.modalities)
        rows: list[Prompt] = []
        for i, wanted in enumerate(outputs):
            orders: tuple[list[str], ...] = (
                [*names[i % len(names) :], *names[: i % len(names)]],
                names[i % len(names) :][:1],
                [],
            )
            drawn = [self.draws.row(order) for order in orders]
            rows.append(next(row for row in drawn if not row or self._fits(row, wanted)))
        return rows

    def _fits(self, row: Prompt, wanted: Sequence[str]) -> bool:
        """Whether there is room for the longest segments that can come out."""
        given, layout = [segment.tower for segment in row], self.zipped.graph.layout
        if row and turns([*given, *wanted], layout) != [*turns(given, layout), *turns(wanted, layout)]:
            return False
        try:
            self.zipped.collate([[*row, *(Segment(name, [0] * LONGEST) for name in wanted)]])
        except DataError:
            return False
        return True

    def sample_all(self) -> None:
        """Each modality comes first and comes after every other one, in rows of one batch."""
        for i in range(len(self.able)):
            self.sample([*self.able[i:], *self.able[:i]])

    def sample(self, order: list[str]) -> None:
        """Rows that generate in this order, and from other places of it, with drawn tokens."""
        outputs = [[*order[i % len(order) :], *order[: i % len(order)]][: 1 + i] for i in range(N_ROWS)]
        prompts = self.prompts(outputs)
        seen: list[list[tuple[str, int, int, Tensor]]] = [[] for _ in outputs]

        def watch(name: str, places: dict[int, tuple[int, int]], logits: Tensor) -> None:
            for row, (segment, n_fed) in places.items():
                seen[row].append((name, segment, n_fed - 1, logits[row].double()))

        generation = stream(self.zipped, prompts, outputs, LONGEST, Sampling(temperature=1.0), 0, watch)
        for _ in generation:
            pass
        for prompt, new, steps in zip(prompts, generation.segments, seen, strict=True):
            whole = _Whole(self.zipped, [*prompt, *new])
            for name, segment, offset, logits in steps:
                self.demand_close(name, logits, whole(segment, name, offset), offset)

    def demand_close(self, name: str, found: Tensor, expected: Tensor, step: int) -> None:
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        self.n_compared += 1
        self.worst = max(self.worst, difference)
        if not difference <= self.allowed:
            raise RefutedError(
                f"{name}: after {step} tokens of a segment, the logits with caches and those of the whole sequence "
                f"differ by {difference:.1e} of the largest; at most {self.allowed:.1e} was expected"
            )

    def search(self, name: str) -> None:
        """The score of a beam's best segment is the probability that the whole sequence gives it."""
        prompts = [prompt for prompt in self.prompts([[name]] * N_ROWS) if self._fits(prompt, [name])]
        generation = stream(self.zipped, prompts, [name], LONGEST, Sampling(beams=BEAMS))
        ends: list[Piece] = [piece for piece in generation if piece.token is None]
        for piece in ends:
            (segment,) = generation.segments[piece.row]
            prompt = prompts[piece.row]
            whole = _Whole(self.zipped, [*prompt, segment])
            modality = self.zipped.graph.modalities[name]
            assert modality.frame is not None and piece.score is not None
            ended = [modality.frame.end] if len(segment.tokens) < LONGEST else []
            total, tokens = 0.0, [*segment.tokens, *ended]
            for step, token in enumerate(tokens):
                own = whole(len(prompt), name, step)[modality.first_id :][: modality.vocab_size]
                total += float(own.log_softmax(dim=-1)[int(token)])
            expected = torch.tensor([total / max(len(tokens), 1)])
            self.demand_close(f"{name}, {BEAMS} beams", torch.tensor([piece.score]), expected, len(tokens))


class _Whole:
    """Logits of a whole row in one forward."""

    def __init__(self, zipped: Composition, row: Sequence[Segment]) -> None:
        self._batch = to_device(zipped, [row])
        heads = {name for name in self._batch.towers if zipped.graph.towers[name].predicts}
        plan = zipped.plan.prune(Wanted(heads=heads, sees=self._batch.sees))
        self._logits = zipped.model.run(plan, self._batch.towers, self._batch.multimodal)
        self._modalities = zipped.graph.modalities

    def __call__(self, segment: int, name: str, offset: int) -> Tensor:
        """(V,) logits after so many tokens of a segment and its begin."""
        tower = self._modalities[name].tower
        tokens = self._batch.towers[tower]
        at = (tokens.segment[0] == segment) & (tokens.offset[0] == offset) & ~tokens.inserted[0]
        return self._logits[tower][0, at.nonzero()[0, 0]].double()
