"""Losses without a table of logits: equal to those with one, in every kind of model, and with less in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import zippkit
from helpers.compositions import bucketed, link, make, randomise, tower
from zippkit.batch.batch import IGNORE, Batch, Segment
from zippkit.composition import Composition
from zippkit.model.economy import NATS, Economy
from zippkit.model.loss import loss
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.composition_spec import CompositionSpec

CHUNKS = Economy(logits=50)
"""Two rows of logits of 20 ids at once."""
HF: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HF |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 18, "eos_token_id": 19}


def hf(**model: Any) -> dict[str, Any]:
    return {"kind": "hf_causal_lm", "config": {"model": HF | model}, "frame": {"begin": 18, "end": 19}}


def gradients(
    model: ZippedModel, batch: Batch, economy: Economy | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor | None]]:
    """Losses and gradients, of a copy of the model."""
    model = copy.deepcopy(model)
    outputs = model(batch, economy) if economy else model(batch)
    losses = loss(outputs, batch, model.added_losses(outputs, batch))
    losses["total"].backward()
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(model: ZippedModel, batch: Batch, economy: Economy) -> None:
    (expected, grads), (found, others) = gradients(model, batch), gradients(model, batch, economy)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-6), name
    for name, grad in grads.items():
        if grad is None:
            assert others[name] is None or not others[name].any(), name  # type: ignore[union-attr]
        else:
            scale = max(1.0, float(grad.abs().max()))
            assert torch.allclose(others[name], grad, rtol=0, atol=1e-6 * scale), name  # type: ignore[arg-type]


SPEECH = tower(2, 8)
LINKS = [link("speech", "text", every=1), link("text", "speech", every=2)]
TOWERS: dict[str, dict[str, Any]] = {
    "tied": tower(2, 8, input_projection={}),
    "a head of its own": tower(2, 8, config={"tied": False}),
    "frozen": tower(2, 8, freeze=True),
    "frozen but for its head": tower(
        2, 8, config={"tied": False}, freeze={"lm_head.*": "train", "[!l]*": "freeze", "la*": "freeze"}
    ),
    "adapted": tower(2, 8, config={"tied": False}, freeze=True, lora={"rank": 2, "pattern": "*m_head*"}),
    "hosting": tower(2, 8, freeze=True, extend_vocabulary={"video": 6}),
    "soft caps": hf(model_type="gemma2", query_pre_attn_scalar=8, final_logit_softcapping=3.0),
    "scaled logits": hf(model_type="granite", logits_scaling=3.0, embedding_multiplier=2.0),
    "experts": hf(model_type="mixtral", num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.1),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOWERS)
def test_losses_and_gradients_are_those_of_whole_logits(kind: str) -> None:
    made = make({"text": TOWERS[kind], "speech": SPEECH}, LINKS)
    batch = bucketed(made, 0)
    for each in (batch, batch.with_places(), batch.with_places(64)):
        assert_equal(made.model, each, CHUNKS)
    outputs = made.model(batch, CHUNKS)
    assert {NATS + name for name in batch.outputs} <= outputs.keys() and not batch.outputs & outputs.keys()


def test_other_losses_stay() -> None:
    spec = {"name": "tiny", "towers": {"text": tower(1, 8), "speech": SPEECH}, "links": LINKS, "next": {}}
    spec["contrastive"] = [{"from": "speech", "into": "text", "width": 4}]
    made = zippkit.compile(CompositionSpec.model_validate(spec))
    randomise(made.model)
    batch = bucketed(made, 0)
    assert_equal(made.model, batch.with_places(), CHUNKS)
    assert gradients(made.model, batch, CHUNKS)[0].keys() >= {"text", "speech", "next", "speech_text_contrast"}


@given(st.integers(1, 400), st.booleans(), st.lists(st.booleans(), min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_chunks_of_any_size(logits: int, known: bool, asked: list[bool]) -> None:
    """Also where a tower has no target at all."""
    made = _small()
    rows = [[Segment("text", [1, 2, 3], loss=asked[0]), Segment("speech", [4], loss=asked[1])],
            [Segment("speech", [5, 6]), Segment("text", [], loss=asked[2])]]  # fmt: skip
    batch = made.collate(rows, 4)
    assert_equal(made.model, batch.with_places() if known else batch, Economy(logits=logits))


def _small() -> Composition:
    return make({"text": tower(1, 8), "speech": SPEECH}, LINKS)


def test_small_tables_are_computed_whole_to_the_bit() -> None:
    made = _small()
    batch = bucketed(made, 0)
    n_logits = max(20 * tower.tokens.numel() for tower in batch.towers.values())
    outputs, economic = made.model(batch), made.model(batch.with_places(), Economy(logits=n_logits))
    assert outputs.keys() == economic.keys() == {"text", "speech"}
    assert all(torch.equal(outputs[name], economic[name]) for name in outputs)
    assert NATS + "text" in made.model(batch, Economy(logits=n_logits - 1))


class Widest(TorchDispatchMode):
    """The most entries of a tensor whose last side is the vocabulary's; the head's weight is none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, torch.Tensor) and each.shape[-1:] == (20,) and each.shape != (8, 20):
                self.found = max(self.found, each.numel())
        return out


@pytest.mark.parametrize("economy", [None, CHUNKS])
def test_no_table_is_ever_larger_than_a_chunk(economy: Economy | None) -> None:
    made = _small()
    with Widest() as widest:
        gradients(made.model, bucketed(made, 0).with_places(), economy)
    assert (widest.found <= 50) == (economy is not None)


def test_logits_are_computed_where_there_are_targets() -> None:
    made = _small()
    batch = bucketed(made, 0).with_places()
    for name in batch.outputs:
        inputs = batch.towers[name]
        rows = inputs.places
        assert rows is not None and len(rows) == (inputs.targets != IGNORE).sum() < inputs.targets.numel()
        assert torch.equal(inputs.targets.flatten()[rows], inputs.targets[inputs.targets != IGNORE])
        padded = inputs.with_places(64).places
        assert padded is not None and len(padded) == 64 and (padded[len(rows) :] == -1).all()
    counted: list[int] = []
    head = made.model.tower("text").head
    made.model.tower("text").head = lambda hidden: counted.append(hidden.shape[0]) or head(hidden)  # type: ignore[method-assign]
    made.model(batch, CHUNKS)
    assert sum(counted) == len(batch.towers["text"].places) and max(counted) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("run", ["compiled", "without gradients", "bf16"])
def test_it_is_the_same_however_it_is_run(run: str) -> None:
    made = _small()
    batch = bucketed(made, 0).with_places(64)
    forward: Callable[..., Any] = made.model
    if run == "compiled":
        forward = torch.compile(made.model, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.set_grad_enabled(run != "without gradients"), torch.autocast("cpu", torch.bfloat16, run == "bf16"):
        expected, found = loss(made.model(batch), batch), loss(forward(batch, CHUNKS), batch)
        assert all(torch.allclose(found[name], value, rtol=1e-6, atol=1e-6) for name, value in expected.items())
    if run != "without gradients":
        into = [p for p in made.model.parameters() if p.requires_grad]
        grads = [torch.autograd.grad(each["total"], into, allow_unused=True) for each in (expected, found)]
        tolerance = 2e-2 if run == "bf16" else 1e-6
        for one, other in zip(*grads, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, atol=tolerance * max(1.0, float(one.abs().max())))


def test_what_was_not_looked_for_is_looked_at_everywhere() -> None:
    made = _small()
    batch = bucketed(made, 0)
    stale = replace(
        batch, towers={name: replace(each, places=None) for name, each in batch.with_places().towers.items()}
    )
    assert torch.allclose(*(made.model(each, CHUNKS)[NATS + "text"] for each in (batch.with_places(), stale)))
