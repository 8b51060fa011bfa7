"""Steps that read packed copies of the weights: what they compute is what the modules themselves compute."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import zippkit
from helpers.compositions import link, make, randomise, tower
from helpers.random_specs import specs
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.generation.api import stream
from zippkit.loading import check_spec
from zippkit.model.decoding_steps import FlatStep
from zippkit.spec.sampling import Sampling

SPEECH, TEXT = Segment("speech", [1, 2, 3, 4, 5]), Segment("text", [6, 7])
PROMPTS = [[SPEECH], [TEXT], [Segment("speech", [9]), TEXT], []]
"""Rows of different lengths, one that sees nothing."""


def logits(zipped: Composition, packed: bool, outputs: Any = (("text",), ("speech",)), **more: Any) -> list[Any]:
    """The tokens that are drawn, and the logits of every step."""
    seen: list[torch.Tensor] = []

    def watch(name: str, places: dict[int, tuple[int, int]], found: torch.Tensor) -> None:
        seen.extend(found[row].double() for row in places)

    wanted = [list(outputs[i % len(outputs)]) for i in range(len(PROMPTS))]
    ways = {"sampling": Sampling(temperature=1.0), **more}
    generation = stream(zipped, PROMPTS, wanted, 6, watch=watch, packed=packed, **ways)
    for _ in generation:
        pass
    return [generation.segments, seen]


def demand_equal(zipped: Composition, allowed: float, **more: Any) -> None:
    (tokens, found), (own_tokens, expected) = logits(zipped, True, **more), logits(zipped, False, **more)
    assert tokens == own_tokens
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=allowed, atol=allowed * float(other.abs().max()))


def two(**text: Any) -> Composition:
    """Two towers that read each other."""
    towers = {"text": tower(3, 16, **text), "speech": tower(3, 24, config={"n_kv_heads": 1, "tied": False})}
    return make(towers, [link("speech", "text", every=1), link("text", "speech", every=2)])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(described=specs(), wide=st.booleans())
def test_every_composition(described: dict[str, Any], wide: bool) -> None:
    spec, wrong = check_spec(described)
    assume(spec is not None and not wrong)
    zipped = zippkit.compile(spec)
    randomise(zipped.model)
    names = list(zipped.graph.modalities)
    zipped.model.to(torch.float64 if wide else torch.float32)
    prompts = [name for name in names if name in ("text", "speech")]
    demand_equal(zipped, 1e-9 if wide else 2e-4, outputs=[(name,) for name in prompts])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_rest_or_see_nothing(dtype: torch.dtype) -> None:
    zipped = two()
    zipped.model.to(dtype)
    demand_equal(zipped, 1e-9 if dtype == torch.float64 else 2e-4, outputs=[("text", "speech"), ("speech", "text")])


def test_towers_in_bfloat16() -> None:
    zipped = two()
    for name in ("text", "speech"):
        zipped.model.tower(name).bfloat16()
    _, found = logits(zipped, True, sampling=Sampling())
    _, expected = logits(zipped, False, sampling=Sampling())
    differences = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found[:4], expected[:4], strict=True)]
    assert max(differences) < 0.05


def test_beams() -> None:
    zipped = two()
    prompts = [[SPEECH], [SPEECH, TEXT]]
    found = []
    for packed in (True, False):
        generation = stream(zipped, prompts, ["speech"], 5, Sampling(beams=3), packed=packed)
        found.append(list(generation))
    for one, other in zip(*found, strict=True):
        assert (one.row, one.token) == (other.row, other.token)
        assert (one.score or 0) == pytest.approx(other.score or 0, rel=1e-4)


def test_adapters_are_part_of_the_weights() -> None:
    zipped = two(freeze=True, lora={"rank": 2, "pattern": "*_proj.weight"})
    demand_equal(zipped, 2e-4)


def test_steps_are_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    run = FlatStep.run
    monkeypatch.setattr(FlatStep, "run", lambda self, *given: ran.append(self.tower) or run(self, *given))
    zipped = two()
    n_steps = len(logits(zipped, True)[1])
    assert set(ran) == {"text", "speech"}
    forms, model = zipped.model.forms, zipped.model
    assert all(forms.tower(model.tower(name)) is not None for name in ran)
    assert all(forms.link(model.link(site)) is not None for site in zipped.graph.sites)
    ran.clear()
    assert len(logits(zipped, False)[1]) == n_steps
    assert not ran


@pytest.mark.parametrize("way", ["in place", "replaced", "trained", "link"])
def test_changed_weights_are_packed_anew(way: str) -> None:
    zipped = two()
    demand_equal(zipped, 2e-4)
    text = zipped.model.tower("text")
    match way:
        case "in place":
            randomise(text, 1)
        case "replaced":
            for parameter in text.parameters():
                parameter.data = parameter.data * 1.5
        case "trained":
            zipped.model.train()
            # Nobody counts what is written through `data`.
            for parameter in text.parameters():
                parameter.data.mul_(1.5)
        case _:
            randomise(zipped.model.groups["links"], 1)
    demand_equal(zipped, 2e-4)


def test_copies_of_a_model_pack_for_themselves() -> None:
    zipped = two()
    _, expected = logits(zipped, True)
    for model in (copy.deepcopy(zipped.model), pickle.loads(pickle.dumps(zipped.model))):
        randomise(model.tower("text"), 3)
        assert "forms" not in "".join(model.state_dict())
    _, found = logits(zipped, True)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
