"""Layers that are run again in the backward pass: equal to the bit, with less kept in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.compositions import bucketed, link, make, tower
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.model.economy import SPENDS, Economy
from zippkit.model.loss import loss
from zippkit.model.source_states import source_states, tapped_depths
from zippkit.spec.phase import Phase
from zippkit.spec.step_memory import StepMemory

BOTH = Economy(recompute=frozenset({"text", "speech"}))
HF: dict[str, Any] = {"model_type": "mixtral", "vocab_size": 20, "hidden_size": 16, "intermediate_size": 32}
HF |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
HF |= {"num_experts_per_tok": 2, "bos_token_id": 18, "eos_token_id": 19, "router_aux_loss_coef": 0.1}
EXPERTS = {"kind": "hf_causal_lm", "config": {"model": HF}, "frame": {"begin": 18, "end": 19}}
TEXT = tower(2, 16)


def both_ways(**more: Any) -> list[dict[str, Any]]:
    return [link("speech", "text", **more), link("text", "speech", **more)]


KINDS: dict[str, Callable[[], Composition]] = {
    "gated": lambda: make({"text": TEXT, "speech": tower(2, 8)}, both_ways(every=1)),
    "before layers": lambda: make(
        {"text": TEXT, "speech": tower(2, 8)}, both_ways(every=1, config={"n_heads": 2, "placement": "before"})
    ),
    "prefix": lambda: make({"text": TEXT, "speech": tower(2, 8)}, [link("speech", "text", kind="prefix", config={})]),
    "resampler": lambda: make(
        {"text": TEXT, "speech": tower(2, 8)},
        [link("speech", "text", kind="resampler", config={"queries": 2, "depth": 1, "n_heads": 2})],
    ),
    "joint": lambda: make(
        {"text": TEXT, "speech": tower(2, 16)}, both_ways(kind="joint_attention", every=1, config={})
    ),
    "frozen text": lambda: make({"text": TEXT | {"freeze": True}, "speech": tower(2, 8)}, both_ways(every=1)),
    "experts": lambda: make({"text": EXPERTS, "speech": tower(2, 8)}, both_ways(every=1)),
}


def run(made: Composition, economy: Economy) -> tuple[dict[str, Tensor], list[Tensor | None], int]:
    """Losses, gradients, and the bytes that were kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch, parameters = bucketed(made, 0), [p for p in made.model.parameters() if p.requires_grad]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = made.model(batch, economy)
    losses = loss(outputs, batch, made.model.added_losses(outputs, batch))
    return losses, list(torch.autograd.grad(losses["total"], parameters, allow_unused=True)), sum(kept.values())


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other is None or (one is not None and other is not None and torch.equal(one, other))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_the_same_to_the_bit(kind: str) -> None:
    made = KINDS[kind]()
    made.model.train()
    (expected, grads, much), (found, others, little) = (run(made, economy) for economy in (SPENDS, BOTH))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert all(map(same, grads, others)) and any(grad is not None for grad in grads)
    assert little < 0.75 * much


def test_one_tower_alone() -> None:
    made = KINDS["gated"]()
    kept = [run(made, economy)[2] for economy in (SPENDS, Economy(recompute=frozenset({"speech"})), BOTH)]
    assert kept[0] > kept[1] > kept[2]


def test_kept_states_of_a_source_are_read_twice_too() -> None:
    """A batch that brings the states of a frozen source, as its cache gives them."""
    made = make({"text": TEXT, "speech": tower(2, 8) | {"freeze": True}}, [link("speech", "text", every=1)])
    rows = [[Segment("speech", [1, 2, 3], loss=False), Segment("text", [4, 5])], [Segment("text", [6])]]
    batch = made.collate(rows, 8)
    speech = batch.towers["speech"]
    (depths,) = tapped_depths(made.plan.prune(made.model.wanted(batch))).values()
    states = source_states(made.model, "speech", depths, speech, batch.multimodal)
    kept = replace(batch, towers={**batch.towers, "speech": replace(speech, states=states)})
    parameters, found = [p for p in made.model.parameters() if p.requires_grad], []
    for given, economy in ((batch, SPENDS), (kept, SPENDS), (kept, BOTH)):
        total = loss(made.model(given, economy), given)["total"]
        found.append(torch.autograd.grad(total, parameters, allow_unused=True))
    assert all(map(same, found[1], found[2]))
    assert all(a is b is None or torch.allclose(a, b, atol=1e-6) for a, b in zip(found[0], found[2], strict=True))  # type: ignore[arg-type]


def test_nothing_is_kept_for_later_without_gradients() -> None:
    made = KINDS["gated"]()
    batch = bucketed(made, 0)
    with torch.no_grad():
        expected, found = made.model(batch), made.model(batch, BOTH)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_phase_names_towers_or_all() -> None:
    made = KINDS["gated"]()
    assert not list(Phase(steps=1, recompute=True).memory_misfits(made.spec.towers))
    assert not list(Phase(steps=1, recompute=["text"]).memory_misfits(made.spec.towers))
    told = [(("recompute", 1), "no tower is called 'txt'; did you mean 'text'?")]
    assert list(Phase(steps=1, recompute=["text", "txt"]).memory_misfits(made.spec.towers)) == told
    with pytest.raises(ValueError, match=r"expected true, false, or a list of towers such as \[text\], got 'text'"):
        StepMemory(recompute="text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="remove `recompute` or `compile`"):
        StepMemory(recompute=True, compile=True)
