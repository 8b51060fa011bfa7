"""C10: the training forward, cached decoding and the exported model are one model, on the user's own weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.errors import DataError
from zippkit.evaluation.certificates.probe import draws_for, orders, to_device
from zippkit.evaluation.certificates.report import RefutedError
from zippkit.generation.api import generate_batch, stream
from zippkit.plan.plan import Wanted
from zippkit.training.hf_export.alone import Asked, Rows, Said, run_alone

N_CASES = 4
LONGEST = 6
"""Tokens that each generated segment may have."""
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-9}
"""Largest difference, relative to the largest logit (at least 1), by the narrowest dtype of the towers."""


@torch.no_grad()
def exported_says_the_same(zipped: Composition, folder: Path) -> str:
    """Certificate C10: random rows, continued greedily by both; then logits of all that was given and said.

    Raises:
        RefutedError: names the modality and the place in which the exported model differs.
    """
    zipped.model.eval()
    dtypes = {zipped.model.tower(name).dtype for name in zipped.graph.towers}
    allowed = max(ALLOWED.get(dtype, 1e-5) for dtype in dtypes)
    cases = list(_cases(zipped))
    found = run_alone([Asked(folder, plain(_whole(case)), [_way(case)] if case.outputs else []) for case in cases])
    worst = [_compare(zipped, case, said, allowed) for case, said in zip(cases, found, strict=True)]
    steps = max((_decoded(zipped, case, allowed) for case in cases), default=0.0)
    n_tokens = sum(len(segment.tokens) for case in cases for row in case.said for segment in row)
    return (
        f"{sum(len(case.given) for case in cases)} rows: logits of {folder.name}, in a process without zippkit, are "
        f"those of the training forward within {max(worst):.1e} of the largest, those of cached decoding within "
        f"{steps:.1e}; {n_tokens} greedy tokens are the same"
    )


class _Case:
    """Rows of the same modalities, and how zippkit continues them."""

    def __init__(self, given: list[list[Segment]], outputs: list[str], said: list[list[Segment]]) -> None:
        self.given, self.outputs, self.said = given, outputs, said


def _cases(zipped: Composition) -> Iterator[_Case]:
    draws, modalities = draws_for(zipped), zipped.graph.modalities
    able = [n for n, m in modalities.items() if m.frame is not None and zipped.graph.towers[m.tower].causal]
    for number, order in enumerate(orders(zipped)[:N_CASES]):
        rows = [draws.row(order) for _ in range(2)]
        names = [segment.tower for segment in rows[0]]
        rows = [row for row in rows if row and [segment.tower for segment in row] == names]
        outputs = [*able[number % len(able) :], *able[: number % len(able)]] if able else []
        if rows:
            yield _continued(zipped, rows, outputs)


def _continued(zipped: Composition, rows: list[list[Segment]], outputs: list[str]) -> _Case:
    """A case in which zippkit has generated; nothing, where the towers have no room for it."""
    try:
        return _Case(rows, outputs, generate_batch(zipped, rows, outputs, LONGEST))
    except DataError:
        return _Case(rows, [], [[] for _ in rows])


def _whole(case: _Case) -> list[list[Segment]]:
    return [[*given, *said] for given, said in zip(case.given, case.said, strict=True)]


def _way(case: _Case) -> dict[str, Any]:
    return {"segments": plain(case.given), "outputs": case.outputs, "max_new_tokens": LONGEST}


def plain(rows: Sequence[Sequence[Segment]]) -> Rows:
    """Rows as an exported model takes them: modalities and plain lists."""
    return [[(each.tower, _listed(each.tokens)) for each in row] for row in rows]


def _listed(tokens: Any) -> Any:
    return tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)


def _logits(zipped: Composition, rows: Sequence[Sequence[Segment]]) -> list[list[Tensor]]:
    """(T, V) logits of each row's segments, by the training forward; empty for encoders."""
    batch = to_device(zipped, rows)
    heads = {name for name in batch.towers if zipped.graph.towers[name].predicts}
    plan = zipped.plan.prune(Wanted(heads=heads, sees=batch.sees))
    logits = zipped.model.run(plan, batch.towers, batch.multimodal)
    found: list[list[Tensor]] = []
    for number, row in enumerate(rows):
        found.append([])
        for i, segment in enumerate(row):
            tower = zipped.graph.modalities[segment.tower].tower
            own = (batch.towers[tower].segment[number] == i) & ~batch.towers[tower].inserted[number]
            found[-1].append(logits[tower][number][own] if tower in logits else torch.zeros(0, 0))
    return found


def _compare(zipped: Composition, case: _Case, said: Said, allowed: float) -> float:
    """Largest difference between the exported model's logits and those of the training forward."""
    rows, worst = _whole(case), 0.0
    expected = _logits(zipped, rows)
    for number, row in enumerate(rows):
        for i, segment in enumerate(row):
            own = expected[number][i]
            if len(own):
                theirs = said.logits[i][number, : len(own)].to(own)
                worst = max(worst, _demand_close(theirs, own, allowed, f"{segment.tower}, segment {i}: the exported"))
    if said.generated:
        _demand_same(case, said, expected, allowed)
    return worst


def _demand_close(found: Tensor, expected: Tensor, allowed: float, what: str) -> float:
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not difference <= allowed:
        raise RefutedError(
            f"{what} model's logits differ from the training forward's by {difference:.1e} of the largest; at most "
            f"{allowed:.1e} was expected"
        )
    return difference


def _demand_same(case: _Case, said: Said, expected: list[list[Tensor]], allowed: float) -> None:
    """Greedy tokens must be the same, but where two of them are equally likely within the tolerance."""
    for number, (ours, theirs) in enumerate(zip(case.said, said.generated[0], strict=True)):
        for i, (segment, (_, tokens)) in enumerate(zip(ours, theirs, strict=True)):
            own = [int(token) for token in segment.tokens]
            if own != tokens:
                at = next((k for k, pair in enumerate(zip(own, tokens, strict=False)) if pair[0] != pair[1]), -1)
                at = min(len(own), len(tokens)) if at < 0 else at
                best = expected[number][len(case.given[number]) + i][at].topk(2).values
                if float(best[0] - best[1]) > 2 * allowed * max(1.0, float(best.abs().max())):
                    raise RefutedError(f"row {number}: {segment.tower}: greedy token {at} is another one")
                # A tie: what follows it may differ.
                break


def _decoded(zipped: Composition, case: _Case, allowed: float) -> float:
    """Largest difference between the logits of cached decoding and those of the training forward."""
    if not case.outputs:
        return 0.0
    expected, worst = _logits(zipped, _whole(case)), [0.0]

    def watch(name: str, places: dict[int, tuple[int, int]], logits: Tensor) -> None:
        for row, (segment, n_fed) in places.items():
            whole = expected[row][segment][n_fed - 1]
            worst.append(_demand_close(logits[row].to(whole), whole, allowed, f"{name}, decoded with caches: the"))

    for _ in stream(zipped, case.given, case.outputs, LONGEST, watch=watch):
        pass
    return max(worst)
