"""How a token is chosen, against transformers' own processors, and for each row by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from helpers.compositions import link, make, tower
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.generation.api import generate, generate_batch
from zippkit.generation.sampling import choose, penalised
from zippkit.plan.plan import Wanted
from zippkit.spec.sampling import Sampling

pytestmark = pytest.mark.slow

N_DRAWS = 20_000


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000),
    st.floats(0.2, 3),
    st.one_of(st.none(), st.integers(1, 9)),
    st.one_of(st.none(), st.floats(0.05, 1)),
)
def test_drawn_as_often_as_transformers_would(
    seed: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = 2 * torch.randn(1, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        warped = TopKLogitsWarper(top_k)(None, warped)
    if top_p is not None:
        warped = TopPLogitsWarper(top_p)(None, warped)
    draws = (torch.arange(N_DRAWS, dtype=torch.float64) + 0.5) / N_DRAWS
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    found = choose(logits.expand(N_DRAWS, -1), sampling, None, draws).bincount(minlength=8) / N_DRAWS
    assert torch.allclose(found.double(), warped.softmax(dim=-1)[0], atol=2 / N_DRAWS)


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_draw_what_is_kept(draw: float) -> None:
    logits = torch.tensor([[0.0, 30.0, -30.0, 1.0]])
    for sampling in (
        Sampling(temperature=1.0),
        Sampling(temperature=1.0, top_p=0.5),
        Sampling(temperature=1.0, top_k=1),
    ):
        token = int(choose(logits, sampling, None, torch.tensor([draw], dtype=torch.float64)))
        assert token == 1 or (sampling == Sampling(temperature=1.0) and draw > 0)


def test_what_the_row_has_had_is_penalised_as_transformers_does() -> None:
    logits = torch.randn(3, 9)
    had = torch.tensor([[1, 1, 2], [0, 8, 3], [5, 5, 5]])
    seen = torch.zeros(3, 9, dtype=torch.bool).scatter(1, had, torch.ones_like(had, dtype=torch.bool))
    expected = RepetitionPenaltyLogitsProcessor(1.7)(had, logits)
    assert torch.equal(penalised(logits, seen, 1.7), expected)


def two() -> Composition:
    towers = {name: tower(2, 8, 20, {"tied": False}) for name in ("text", "speech")}
    zipped = make(towers, [link("speech", "text", every=1), link("text", "speech", every=1)])
    with torch.no_grad():
        for parameter in zipped.model.double().parameters():
            parameter.mul_(1.5 if parameter.dim() == 2 else 1.0)
    return zipped


ROWS = [[Segment("speech", [1, 2, 3])], [], [Segment("text", [4])], [Segment("speech", [5]), Segment("text", [6, 7])]]


def test_a_row_draws_what_it_draws_alone() -> None:
    zipped, sampling = two(), Sampling(temperature=1.5, top_p=0.95)
    found = generate_batch(zipped, ROWS, ["text", "speech"], 8, sampling, seed=5)
    assert found == [generate(zipped, row, ["text", "speech"], 8, sampling, seed=5 + i) for i, row in enumerate(ROWS)]
    backwards = generate_batch(zipped, ROWS[::-1], ["text", "speech"], 8, sampling, seed=[8, 7, 6, 5])
    assert backwards == found[::-1]
    assert found != generate_batch(zipped, ROWS, ["text", "speech"], 8, sampling, seed=6)


def test_each_modality_has_its_own_way_and_limit() -> None:
    zipped = two()
    ways = {"speech": Sampling(temperature=2.0)}
    drawn = [generate(zipped, ROWS[0], ["text", "speech"], {"text": 3, "speech": 9}, ways, seed) for seed in range(12)]
    assert len({str(text) for text, _ in drawn}) == 1, "text is greedy"
    assert len({str(speech) for _, speech in drawn}) > 6
    assert max(len(text.tokens) for text, _ in drawn) <= 3 < max(len(speech.tokens) for _, speech in drawn)


def test_a_penalty_is_of_the_prompt_and_of_what_was_generated() -> None:
    zipped: Any = two()
    with torch.no_grad():
        # No segment ends by itself.
        zipped.model.tower("text").lm_head.weight[19] = 0

    def repeated(penalty: float) -> int:
        (segment,) = generate(zipped, [Segment("text", [3, 4, 5])], ["text"], 12, Sampling(repetition_penalty=penalty))
        return 3 + len(segment.tokens) - len({3, 4, 5, *segment.tokens})

    assert 3 * repeated(1e6) < repeated(1.0)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_is_penalised_for_what_it_has_had_and_for_nothing_else(beams: int) -> None:
    """Beside others, at other turns, and in its second segment of a modality."""
    zipped, way = two(), Sampling(beams=beams, repetition_penalty=3.0)
    rows = [*ROWS, *([Segment("text", [i, i + 1])] for i in range(8)), [Segment("text", [11, 12, 13]), *ROWS[0]]]
    wanted = [["text", "speech", "text"], ["speech", "text"]]
    outputs = [wanted[i % 2] for i in range(len(rows))]
    found = generate_batch(zipped, rows, outputs, 6, way)
    assert found == [generate(zipped, row, names, 6, way) for row, names in zip(rows, outputs, strict=True)]
    for row, (*before, last) in zip(rows, found, strict=True):
        assert [last] == generate(zipped, [*row, *before], [last.tower], 6, way), "as if it all had been given"
    assert found != generate_batch(zipped, rows, outputs, 6, Sampling(beams=beams)), "or nothing is shown"


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: Sampling(temperature=-1), "greater than or equal to 0"),
        (lambda: Sampling(beams=2, temperature=0.5), "beams 2 take the likeliest"),
        (lambda: Sampling(top_k=3), "expected a temperature above 0"),
        (lambda: Sampling(temperature=1, top_p=1.5), "less than or equal to 1"),
    ],
)
def test_ways_that_mean_nothing_are_told(make_it: Callable[[], Sampling], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make_it()


def test_numbers_of_a_row_are_those_of_its_seed() -> None:
    """So that whoever knows the seed can draw the same elsewhere."""
    zipped = two()
    (segment,) = generate(zipped, [], ["text"], 1, Sampling(temperature=1e6), seed=3)
    draw = float(torch.rand((), generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    batch = zipped.collate([[Segment("text", [])]])
    with torch.no_grad():
        logits = zipped.model.run(zipped.plan.prune(Wanted({"text"})), batch.towers, False)["text"][0, 0]
    order = logits.argsort(descending=True)
    assert segment.tokens == [int(order[int(np.floor(draw * 20))])]
