"""Weights in bfloat16 with float32 masters: what autocast computes, and a run that keeps every bit of its masters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import zippkit
from helpers.compositions import bucketed, link, make, tower
from helpers.interrupts import assert_same_run, interrupt, on_step
from helpers.tiny_runs import saved, tiny_recipe
from zippkit.composition import Composition
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.device import CPU
from zippkit.training.masters import Masters
from zippkit.training.optimizer import build_optimizer
from zippkit.training.parallel import World
from zippkit.training.sharding import Shards
from zippkit.training.step import build_step
from zippkit.training.trainer import InterruptedRunError, train

GPT2: dict[str, Any] = {"model_type": "gpt2", "vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2}
GPT2 |= {"n_positions": 64, "bos_token_id": 18, "eos_token_id": 19}
TEXT: dict[str, dict[str, Any]] = {
    "tied": tower(2, 16, input_projection={}),
    "adapted": tower(2, 16, freeze=True, lora={"rank": 2, "pattern": "layers.*_proj.weight"}),
    "in part": tower(2, 16, config={"tied": False}, freeze={"layers.*": "freeze", "[!l]*": "train", "lm*": "train"}),
    "gpt2": {"kind": "hf_causal_lm", "config": {"model": GPT2}, "frame": {"begin": 18, "end": 19}},
}
BF16 = {"precision": "bf16", "parameters": "bf16"}


def made_of(kind: str) -> Composition:
    return make({"text": TEXT[kind], "speech": tower(2, 8)}, [link("speech", "text", every=1)])


def stepped(made: Composition, n_steps: int, **more: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    model, phase = copy.deepcopy(made.model).train(), Phase(steps=9, learning_rate=1e-2, **more)
    shards = Shards(model, World(), narrow=phase.parameters == "bf16")
    optimizer = build_optimizer(model, learning_rates(made.spec, phase), phase, shards)
    step = build_step(model, optimizer, phase, CPU(), shards)
    values = [{k: float(v) for k, v in step(bucketed(made, i).with_places()).items()} for i in range(n_steps)]
    return values, model.state_dict()


@pytest.mark.parametrize("kind", TEXT)
def test_it_computes_what_autocast_computes(kind: str) -> None:
    """To the bit, over three steps; and the model holds its masters afterwards."""
    made = made_of(kind)
    expected, found = stepped(made, 3, precision="bf16"), stepped(made, 3, **BF16)
    assert found[0] == expected[0]
    for name, tensor in expected[1].items():
        assert tensor.dtype == torch.float32 and torch.equal(found[1][name], tensor), name


def test_what_is_narrow_while_a_step_runs() -> None:
    made = made_of("tied")
    masters, seen = Masters(made.model), {}
    before = {name: p.clone() for name, p in made.model.named_parameters()}
    with masters.narrow():
        seen = {name: p.dtype for name, p in made.model.named_parameters()}
    narrow = {name for name, dtype in seen.items() if dtype == torch.bfloat16}
    assert "towers.text.layers.0.mlp.up_proj.weight" in narrow and "links.speech_to_text.0.query.weight" in narrow
    assert not [name for name in narrow if "norm" in name or "embed" in name or "gate." in name or "bias" in name]
    assert all(torch.equal(p, before[name]) for name, p in made.model.named_parameters()), "wide again, to the bit"
    with pytest.raises(KeyboardInterrupt), masters.narrow():
        raise KeyboardInterrupt
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}


def test_small_steps_are_not_rounded_away() -> None:
    made = made_of("tied")
    model = made.model
    weight = model.get_parameter("links.speech_to_text.0.query.weight")
    assert isinstance(weight, nn.Parameter)
    masters = Masters(model)
    master, old = masters.of(weight), weight.detach().clone()
    for _ in range(4):
        with masters.narrow():
            weight.grad = torch.full_like(weight, 1e-4)
            masters.collect()
        with torch.no_grad():
            master.sub_(master.grad)  # type: ignore[arg-type]
        master.grad = None
    assert torch.allclose(weight, old - 4e-4, atol=1e-6) and not torch.equal(weight.bfloat16(), weight)


@pytest.mark.slow
def test_a_run_saves_its_masters_and_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, {**BF16, "accumulate": 2})
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        on_step(patch, 5, interrupt)
        with pytest.raises(InterruptedRunError):
            train(recipe, tmp_path / "parts")
    train(recipe, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    state = saved(tmp_path / "whole")
    assert all(tensor.dtype == torch.float32 for name, tensor in state.items() if "exp_avg" in name or "model" in name)
    weight = zippkit.load(tmp_path / "whole").model.get_parameter("links.speech_to_text.0.query.weight")
    assert weight.dtype == torch.float32 and not torch.equal(weight.bfloat16().float(), weight)


def test_they_are_multiplied_in_bfloat16() -> None:
    with pytest.raises(ValidationError, match="expected `precision: bf16` with it"):
        Phase(steps=1, parameters="bf16")
