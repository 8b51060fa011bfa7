"""Optimisers in named groups, what of them decays, and their state to a file and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.compositions import link, make, tower
from zippkit.composition import Composition
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.model.weights import read_tensors, write_tensors
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.part_kinds import group_names
from zippkit.spec.phase import Phase
from zippkit.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer, set_rate

PHASE = Phase(steps=1, learning_rate=0.5, learning_rates={"towers.speech": 0.25}, betas=(0.8, 0.9))


def zipped(freeze: bool = True) -> Composition:
    towers = {"text": tower(1, 8, freeze=freeze, input_projection={}), "speech": tower(1, 8)}
    return make(towers, [link("speech", "text", every=1)])


def optimizer_of(made: Composition, **more: Any) -> torch.optim.Optimizer:
    phase = Phase(**PHASE.model_dump(exclude_unset=True, exclude={"betas"} if "optimizer" in more else set()), **more)
    return build_optimizer(made.model, learning_rates(made.spec, phase), phase)


def test_every_trained_parameter_is_in_the_group_of_its_part() -> None:
    made = zipped()
    optimizer = optimizer_of(made)
    groups = {group["group"]: group for group in optimizer.param_groups}
    assert list(groups) == ["towers.speech", "input_projections.text", "links.speech_to_text"]
    names = [name for group in groups.values() for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in made.model.named_parameters() if p.requires_grad)
    for group in groups.values():
        assert all(made.model.get_parameter(n) is p for n, p in zip(group["names"], group["params"], strict=True))
        assert group["betas"] == (0.8, 0.9)
    assert [float(group["lr"]) for group in groups.values()] == [0.25, 0.5, 0.5]
    assert "towers.text" in {group["group"] for group in optimizer_of(zipped(freeze=False)).param_groups}


def test_a_name_that_begins_another_has_a_group_of_its_own() -> None:
    """Towers and links `a` and `ab`: every parameter is in the group of its own part, once, at that part's rate."""
    towers = {name: tower(1, 8, input_projection={}) for name in ("a", "ab")}
    links = [link("ab", "a", every=1, name="a"), link("a", "ab", every=1, name="ab")]
    made = make(towers, links)
    rates = {group: i + 1.0 for i, group in enumerate(group_names(made.spec))}
    groups = build_optimizer(made.model, rates, PHASE).param_groups
    assert {group["group"]: float(group["lr"]) for group in groups} == rates
    for group in groups:
        assert {".".join(name.split(".")[:2]) for name in group["names"]} == {group["group"]}
    assert sum(len(group["params"]) for group in groups) == len(list(made.model.parameters()))


def test_rates_are_scaled_in_place() -> None:
    optimizer = optimizer_of(zipped())
    tensors = [group["lr"] for group in optimizer.param_groups]
    for factor in (0.5, 0.1, 1.0):
        set_rate(optimizer, factor)
        assert [float(lr) for lr in tensors] == pytest.approx([0.25 * factor, 0.5 * factor, 0.5 * factor])
    assert all(isinstance(lr, Tensor) for lr in tensors)


def test_nothing_to_train() -> None:
    made = make({"text": tower(1, 8, freeze=True)})
    with pytest.raises(ZippkitError, match="nothing to train: every tower is frozen"):
        optimizer_of(made)


@pytest.mark.parametrize("kind", ["adam", "adamw", "adafactor"])
def test_only_matrices_decay(kind: str) -> None:
    """One step without any gradient to follow shrinks what decays, and moves nothing else."""
    towers = {"text": tower(1, 8, config={"tied": False}, extend_vocabulary={"video": 4}), "speech": tower(1, 8)}
    config = {"n_heads": 2, "gate": "vector"}
    made = make(towers, [link("speech", "text", every=1, config=config)])
    optimizer = optimizer_of(made, optimizer=kind, weight_decay=0.1)
    for parameter in made.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.clone() for name, parameter in made.model.named_parameters()}
    optimizer.step()
    moved = {name for name, parameter in made.model.named_parameters() if not torch.equal(parameter, before[name])}
    still = {name for name in before if "norm" in name or "embed" in name or name.endswith(("gate", "bias"))}
    assert moved == before.keys() - still
    assert {n for group in optimizer.param_groups for n in group["names"]} == before.keys()
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1, 0.0}


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_it_is_torch_s_own(kind: str) -> None:
    made, twin = zipped(), zipped()
    optimizer = optimizer_of(made, optimizer=kind)
    trained = [p for p in twin.model.parameters() if p.requires_grad]
    rates = {p: group["base"] for group in optimizer_of(twin).param_groups for p in group["params"]}
    cls = {"adamw": torch.optim.AdamW, "adafactor": torch.optim.Adafactor}[kind]
    groups = [{"params": [p], "lr": rates[p]} for p in trained]
    theirs = cls(groups, weight_decay=0.0)
    for seed in range(2):
        for model, each in ((made.model, optimizer), (twin.model, theirs)):
            numbers = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.randn(parameter.shape, generator=numbers)
            each.step()
    for (name, found), expected in zip(made.model.named_parameters(), twin.model.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-6), name


def stepped(made: Composition, **more: Any) -> torch.optim.Optimizer:
    """After one step, in which the first parameter got no gradient."""
    optimizer = optimizer_of(made, **more)
    for parameter in [p for group in optimizer.param_groups for p in group["params"]][1:]:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", ["adam", "adamw", "adafactor"])
def test_state_goes_around(kind: str, tmp_path: Path) -> None:
    """Through a file, and a third step is the same to the bit as without the detour."""
    first = stepped(made := zipped(), optimizer=kind)
    write_tensors(tmp_path / "state.safetensors", optimizer_tensors(first))
    tensors = read_tensors(tmp_path / "state.safetensors")
    assert len({key.rpartition(":")[0] for key in tensors}) == sum(len(g["params"]) for g in first.param_groups)
    second = optimizer_of(again := zipped(), optimizer=kind)
    again.model.load_state_dict(made.model.state_dict())
    restore_optimizer(second, tensors, "here")
    found = optimizer_tensors(second)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    for model, each in ((made.model, first), (again.model, second)):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        each.step()
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["adam", "adamw", "adafactor"])
def test_it_begins_as_torch_does_at_a_first_gradient(kind: str) -> None:
    """The same state, values and places as torch makes; what has got no gradient is not moved, not even by decay."""
    made, twin = zipped(), zipped()
    first, lazy = (
        optimizer_of(made, optimizer=kind, weight_decay=0.1),
        optimizer_of(twin, optimizer=kind, weight_decay=0.1),
    )
    lazy.state.clear()
    begun = optimizer_tensors(first)
    assert all(not tensor.any() for tensor in begun.values())
    resting = first.param_groups[0]["params"][0]
    before = resting.clone()
    for step in range(3):
        for model in (made.model, twin.model):
            numbers = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                given = torch.randn(parameter.shape, generator=numbers)
                parameter.grad = given if parameter.requires_grad else None
        if step < 2:
            for each in (first, lazy):
                each.param_groups[0]["params"][0].grad = None
        first.step()
        lazy.step()
        assert torch.equal(resting, before) == (step < 2)
        found, expected = optimizer_tensors(first), optimizer_tensors(lazy)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
        assert not any(found[name].any() for name in found.keys() - expected.keys())
    assert found.keys() == expected.keys() == begun.keys()
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), twin.model.parameters(), strict=True))


def test_files_from_before_a_first_gradient_go_on() -> None:
    """An older file has no state of what no step had reached."""
    tensors = optimizer_tensors(stepped(made := zipped()))
    name = made_name(made)
    older = {key: tensor for key, tensor in tensors.items() if key.rpartition(":")[0] != name}
    assert len(older) == len(tensors) - 3
    restore_optimizer(again := optimizer_of(zipped()), older, "here")
    found = optimizer_tensors(again)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


def made_name(made: Composition) -> str:
    """The first parameter, to which `stepped` gives no gradient."""
    return str(optimizer_of(made).param_groups[0]["names"][0])


def test_state_of_another_optimizer_is_refused() -> None:
    tensors = optimizer_tensors(stepped(zipped(), optimizer="adafactor"))
    with pytest.raises(CheckpointError, match=r"expected that of AdamW, for \(20, 8\), got col_var, row_var, step"):
        restore_optimizer(optimizer_of(zipped(), optimizer="adamw"), tensors, "here")


@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_avg_sq"])
def test_state_that_does_not_fit(key: str) -> None:
    tensors = optimizer_tensors(stepped(zipped()))
    name = next(name for name in tensors if name.endswith("up_proj.weight:exp_avg")).removesuffix(":exp_avg")
    with pytest.raises(CheckpointError, match=f"here: the optimizer's state of {name} does not fit"):
        restore_optimizer(optimizer_of(zipped()), {n: t for n, t in tensors.items() if n != f"{name}:{key}"}, "here")
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_optimizer(optimizer_of(zipped()), tensors | {f"{name}:{key}": torch.zeros(3)}, "here")
    unknown = tensors | {f"towers.video.norm.weight:{key}": torch.zeros(8)}
    with pytest.raises(CheckpointError, match=f"unknown parameters: towers.video.norm.weight:{key}"):
        restore_optimizer(optimizer_of(zipped()), unknown, "here")
