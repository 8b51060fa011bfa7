"""Dropout: in training alone, in what is trained alone, and drawn from (seed, phase, step) alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import zippkit
from helpers.compositions import bucketed, link, make, tower
from helpers.interrupts import assert_same_run, interrupt, on_step
from helpers.tiny_runs import spec, tiny_recipe
from zippkit.composition import Composition
from zippkit.model.economy import Economy
from zippkit.model.layers import Dropout, set_dropout
from zippkit.plan.parts import compare
from zippkit.training.device import CPU
from zippkit.training.randomness import drawn_for
from zippkit.training.trainer import InterruptedRunError, train

KINDS: dict[str, dict[str, Any]] = {
    "gated_cross_attention": {"every": 1, "config": {"n_heads": 2, "dropout": 0.5}},
    "cross_attention": {"every": 1, "config": {"n_heads": 2, "dropout": 0.5}},
    "prefix": {"config": {"dropout": 0.5}},
    "resampler": {"config": {"n_heads": 2, "queries": 2, "depth": 1, "dropout": 0.5}},
}
QFORMER = {"config": {"n_heads": 2, "queries": 2, "depth": 1, "dropout": 0.5, "design": "qformer"}}


def dropping(
    *, freeze: bool = False, towers: float = 0.0, kind: str = "gated_cross_attention", **more: Any
) -> Composition:
    config = {"dropout": towers}
    made = {name: tower(2, 8, config=config, freeze=freeze) for name in ("text", "speech")}
    return make(made, [link("speech", "text", kind=kind, **{**KINDS[kind], **more})])


def is_random(made: Composition) -> bool:
    batch = bucketed(made, 0)
    with torch.no_grad():
        one, other = made.model(batch)["text"], made.model(batch)["text"]
    return not torch.equal(one, other)


@pytest.mark.parametrize(("kind", "more"), [*((kind, {}) for kind in KINDS), ("resampler", QFORMER)])
def test_a_link_drops_in_training_alone(kind: str, more: dict[str, Any]) -> None:
    made = dropping(kind=kind, **more)
    made.model.train()
    assert is_random(made)
    made.model.eval()
    assert not is_random(made)


def test_what_is_frozen_drops_nothing() -> None:
    """Though the model is in training mode, and configs ask for dropout."""
    frozen = dropping(freeze=True, towers=0.5)
    frozen.model.train()
    assert is_random(frozen), "its link is trained"
    frozen = dropping(freeze=True, towers=0.5)
    frozen.model.requires_grad_(False).train()
    assert not is_random(frozen)
    quiet = {"config": {"n_heads": 2}}
    assert not is_random(dropping(freeze=True, towers=0.5, **quiet)), "its towers are frozen, and its link never drops"
    trained = dropping(towers=0.5, **quiet)
    trained.model.train()
    assert is_random(trained)


def test_blind_positions_and_the_rest_of_the_certificates() -> None:
    made = dropping(towers=0.3)
    assert zippkit.verify(made).passed
    made.model.train()
    batch = made.collate([[zippkit.Segment("text", [1, 2]), zippkit.Segment("speech", [3])]])
    quiet = dropping()
    quiet.model.load_state_dict(made.model.state_dict())
    set_dropout(made.model.tower("text"), 0.0)
    assert torch.equal(made.model(batch)["text"], quiet.model.eval()(batch)["text"]), "they see no source"


def test_a_phase_says_how_much() -> None:
    made = dropping(towers=0.25)
    rates = {module.p for module in made.model.modules() if isinstance(module, Dropout)}
    assert rates == {0.25, 0.5}
    set_dropout(made.model, 0.1)
    assert {module.p for module in made.model.modules() if isinstance(module, Dropout)} == {0.1}
    set_dropout(made.model, None)
    assert {module.p for module in made.model.modules() if isinstance(module, Dropout)} == rates


def test_parts_that_differ_in_it_are_the_same() -> None:
    one, other = dropping(towers=0.25), dropping(config={"n_heads": 2})
    assert not compare(one.spec, other.spec)[1]
    assert one.model.state_dict().keys() == other.model.state_dict().keys()


def test_draws_depend_on_the_step_alone() -> None:
    before = torch.get_rng_state()
    drawn = {}
    for step in (3, 4, 3):
        torch.rand(step)
        with drawn_for(0, "train", step, CPU()):
            drawn.setdefault(step, []).append(torch.rand(5))
        torch.rand(1)
    assert torch.equal(*drawn[3]) and not torch.equal(drawn[3][0], drawn[4][0])
    for other in ((1, "train"), (0, "pretrain.text")):
        with drawn_for(*other, 3, CPU()):
            assert not torch.equal(torch.rand(5), drawn[3][0])
    torch.set_rng_state(before)
    expected = torch.rand(2)
    torch.set_rng_state(before)
    with drawn_for(0, "train", 1, CPU()):
        torch.rand(7)
    assert torch.equal(torch.rand(2), expected), "what others draw is as it was"


def test_layers_that_run_twice_drop_the_same() -> None:
    made = dropping(towers=0.3)
    made.model.train()
    batch, grads = bucketed(made, 0), []
    for economy in (Economy(), Economy(recompute=frozenset({"text", "speech"}))):
        with drawn_for(0, "train", 0, CPU()):
            total = made.loss(made.model(batch, economy), batch)["total"]
            grads.append(torch.autograd.grad(total, [*made.model.parameters()], allow_unused=True))
    assert any(grad is not None and grad.any() for grad in grads[0])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*grads, strict=True))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_that_drops_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    towers = spec()["towers"]
    towers["speech"]["config"]["dropout"] = 0.3
    given = ({"dropout": 0.2, "accumulate": 2, "recompute": ["text"]}, {"dropout": None})
    for i, more in enumerate(given):
        recipe = tiny_recipe(tmp_path, more, spec=spec(towers=towers))
        train(recipe, tmp_path / f"whole{i}")
        with monkeypatch.context() as patch:
            on_step(patch, 5, interrupt)
            with pytest.raises(InterruptedRunError):
                train(recipe, tmp_path / f"parts{i}")
        torch.manual_seed(random.randrange(1000))
        torch.rand(3)
        train(recipe, tmp_path / f"parts{i}")
        assert_same_run(tmp_path / f"whole{i}", tmp_path / f"parts{i}")
    quiet = tiny_recipe(tmp_path, {"dropout": 0.0}, spec=spec(towers=towers))
    train(quiet, tmp_path / "quiet")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "whole1", tmp_path / "quiet")


def test_transformers_own_towers_draw_nothing() -> None:
    """Whatever dropout their configs name: a tower returns the same for the same inputs, trained or not."""
    model = {"model_type": "gpt2", "vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model |= {"bos_token_id": 18, "eos_token_id": 19, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    text = {"kind": "hf_causal_lm", "config": {"model": model}, "frame": {"begin": 18, "end": 19}}
    made = make({"text": text, "speech": tower(1, 8)}, [link("speech", "text", every=1)])
    set_dropout(made.model.train(), None)
    assert not is_random(made)
