"""Two towers of one set of weights."""

from __future__ import annotations

from typing import Any

import torch
import yaml
from torch.nn.functional import cross_entropy

import zippkit
from helpers.compositions import link, make_spec, randomise, tower
from zippkit.batch.batch import Segment
from zippkit.checkpoint.frozen_hashes import frozen_tensors
from zippkit.loading import check_spec
from zippkit.model.lora import merged_state
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.part_kinds import group_names
from zippkit.spec.phase import Phase
from zippkit.spec.recipe import Recipe
from zippkit.spec.recipe_checks import recipe_complaints
from zippkit.spec.standalone import spec_text
from zippkit.training.optimizer import build_optimizer

LINKS = [link("left", "right", every=2, clock="sync"), link("right", "left", every=2, clock="sync")]


def towers(**changes: Any) -> dict[str, Any]:
    # The tower that shares comes first: which is named first must not matter.
    return {"right": {"share_with": "left", **changes}, "left": tower(2)}


def test_both_names_are_one_module_that_is_trained_once() -> None:
    zipped = zippkit.compile(make_spec(towers(), LINKS))
    assert zipped.model.tower("left") is zipped.model.tower("right")
    names = [name for name, _ in zipped.model.named_parameters() if name.startswith("towers.")]
    assert names and all(name.startswith("towers.left.") for name in names)
    assert [name for name in group_names(zipped.spec) if name.startswith("towers.")] == ["towers.left"]
    phase = Phase(steps=1, tasks=["left + right"])
    optimizer = build_optimizer(zipped.model, learning_rates(zipped.spec, phase), phase)
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in stepped}) == len(stepped) == sum(p.requires_grad for p in zipped.model.parameters())


def test_the_gradient_is_that_of_both_channels() -> None:
    zipped = zippkit.compile(make_spec(towers(), LINKS))
    parts = []
    for losses in ((True, False), (False, True), (True, True)):
        rows = [[Segment("left", [1, 2], loss=losses[0]), Segment("right", [3, 4], loss=losses[1])]]
        batch = zipped.collate(rows)
        zipped.model.zero_grad()
        logits = zipped.model(batch)
        nats = [cross_entropy(logits[n].mT, batch.towers[n].targets, reduction="sum") for n in logits]
        sum(nats).backward()
        parts.append(zipped.model.tower("left").norm.weight.grad.clone())
    assert torch.allclose(parts[0] + parts[1], parts[2], atol=1e-5)


def test_adapters_learn_from_both_channels() -> None:
    lora = {"rank": 2, "pattern": "layers.*.self_attn.?_proj.weight"}
    spec = make_spec({"right": {"share_with": "left"}, "left": tower(2, freeze=True, lora=lora)})
    zipped = zippkit.compile(spec)
    assert [name for name in group_names(spec) if name.startswith("adapters.")] == ["adapters.left"]
    randomise(zipped.model)
    parts = []
    for losses in ((True, False), (False, True), (True, True)):
        rows = [[Segment("left", [1, 2], loss=losses[0]), Segment("right", [3, 4], loss=losses[1])]]
        batch = zipped.collate(rows)
        zipped.model.zero_grad()
        logits = zipped.model(batch)
        sum(cross_entropy(logits[n].mT, batch.towers[n].targets, reduction="sum") for n in logits).backward()
        parts.append([p.grad.clone() for p in zipped.model.adapters.parameters()])
    for left, right, both in zip(*parts, strict=True):
        assert left.any() and right.any()
        assert torch.allclose(left + right, both, atol=1e-5)
    states = [merged_state(zipped.model, name) for name in ("left", "right")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_what_is_frozen_is_hashed_once() -> None:
    zipped = zippkit.compile(make_spec({"right": {"share_with": "left"}, "left": tower(2, freeze=True)}, LINKS))
    zipped.model.tower("left").register_buffer("calm", torch.ones(2))
    found = frozen_tensors(zipped.spec, zipped.model)
    assert {name.split(".")[1] for name in found} == {"left"} and "towers.left.calm" in found


def test_every_certificate_holds_and_the_spec_comes_back() -> None:
    spec = make_spec(towers(), LINKS)
    assert zippkit.verify(zippkit.compile(spec)).passed
    again = CompositionSpec.model_validate(yaml.safe_load(spec_text(spec)))
    assert again.towers["right"].share_with == "left"
    assert spec_text(again) == spec_text(spec)


def test_what_does_not_fit_is_told() -> None:
    def told(right: dict[str, Any], left: dict[str, Any] | None = None) -> str:
        data = {"name": "tiny", "towers": {"right": right, "left": left or tower(2)}, "links": LINKS}
        return "; ".join(f"{'.'.join(map(str, place))}: {message}" for place, message in check_spec(data)[1])

    assert told({"share_with": "left"}) == ""
    assert "no tower is called 'lift'; did you mean 'left'?" in told({**tower(2), "share_with": "lift"})
    assert told({"share_with": "lift"}) == "towers.right.share_with: no tower is called 'lift'; did you mean 'left'?"
    assert "'right' has no weights of its own" in told({**tower(2), "share_with": "right"})
    assert "remove freeze here" in told({"share_with": "left", "freeze": True})
    assert "remove config here" in told({**tower(3), "share_with": "left"})
    assert told({**tower(2), "share_with": "left"}) == ""


def test_only_the_owner_is_pre_trained(tmp_path: Any) -> None:
    spec = make_spec(towers(), LINKS)
    recipe = Recipe(name="r", spec=spec, data=tmp_path, pretrain={"right": Phase(steps=1)}, train=Phase(steps=1))
    assert (("pretrain", "right"), "the weights are those of 'left'; pre-train that tower") in recipe_complaints(recipe)
