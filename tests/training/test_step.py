"""The training step as a device likes it: it looks at no value, keeps its shapes, compiles once, and runs in bf16."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from helpers.compositions import bucketed, link, make, tower
from zippkit.batch.batch import Batch
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.model.loss import loss
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.device import CPU, backend
from zippkit.training.optimizer import build_optimizer, set_rate
from zippkit.training.step import TrainingStep, build_step

pytestmark = pytest.mark.slow


def small() -> Composition:
    towers = {"text": tower(1, 8, freeze=True, input_projection={}), "speech": tower(2, 8)}
    return make(towers, [link("speech", "text", every=1), link("text", "speech", every=2)])


def prepared(zipped: Composition, **more: Any) -> tuple[torch.optim.Adam, TrainingStep]:
    phase = Phase(steps=10, learning_rate=1e-2, **more)
    optimizer = build_optimizer(zipped.model, learning_rates(zipped.spec, phase), phase)
    return optimizer, build_step(zipped.model.train(), optimizer, phase, CPU())


def faked(batch: Batch, mode: FakeTensorMode) -> Batch:
    towers = {name: tower.mapped(mode.from_tensor) for name, tower in batch.towers.items()}
    return replace(batch, towers=towers, multimodal=mode.from_tensor(batch.multimodal))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_runs_on_fake_tensors(precision: str) -> None:
    """Forward, loss, backward, clipping and Adam never look at a value, so no device is ever waited for."""
    real = bucketed(small(), 0)
    with FakeTensorMode() as mode:
        zipped = small()
        optimizer, step = prepared(zipped, precision=precision)
        for factor in (0.5, 1.0):
            set_rate(optimizer, factor)
            values = step(faked(real, mode))
    assert set(values) == {"text", "speech", "total", "gradient_norm"}
    assert all(value.shape == () for value in values.values())


def test_fake_tensors_notice_a_look_at_a_value() -> None:
    """So that the test above can fail."""
    real = bucketed(small(), 0)
    with FakeTensorMode() as mode, pytest.raises(DataDependentOutputException):
        _ = faked(real, mode).n_tokens


@torch._dynamo.config.patch(error_on_recompile=True)
def test_one_compilation_serves_every_step_of_a_bucket() -> None:
    """Forward and loss as one graph, with weights and rates that change, against steps without a compiler."""
    plain, compiled = small(), small()
    plain_optimizer, plain_step = prepared(plain)
    optimizer, _ = prepared(compiled)
    model = torch.compile(compiled.model, fullgraph=True, dynamic=False, backend="aot_eager")
    step = build_step(model, optimizer, Phase(steps=10), CPU())
    for number in range(3):
        batch = bucketed(compiled, number)
        for each in (optimizer, plain_optimizer):
            set_rate(each, 1 / (1 + number))
        found, expected = step(batch), plain_step(batch)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], value, rtol=1e-4) for name, value in expected.items())
    assert optimizer.param_groups[0]["lr"] == plain_optimizer.param_groups[0]["lr"] == torch.tensor(1e-2 / 3)


@torch._dynamo.config.patch(error_on_recompile=True)
def test_the_loss_is_one_graph_for_every_batch_of_a_bucket() -> None:
    zipped = small()
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
    numbers = torch.Generator().manual_seed(0)
    for seed in range(3):
        batch = bucketed(zipped, seed)
        logits = {name: torch.randn(*t.tokens.shape, 20, generator=numbers) for name, t in batch.towers.items()}
        found, expected = compiled(logits, batch), loss(logits, batch)
        assert all(torch.allclose(found[name], value) for name, value in expected.items())


def test_bf16_is_close_to_fp32() -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        zipped = small()
        _, step = prepared(zipped, precision=precision)
        losses[precision] = [float(step(bucketed(zipped, number))["total"]) for number in range(4)]
        assert all(parameter.dtype == torch.float32 for parameter in zipped.model.parameters())
    assert losses["bf16"] != losses["fp32"], "it is another precision"
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_a_step_is_adam_on_clipped_gradients() -> None:
    zipped, twin = small(), small()
    optimizer, step = prepared(zipped, clip=0.1)
    trained = [parameter for parameter in twin.model.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(trained, lr=1e-2)
    for number in range(3):
        batch = bucketed(zipped, number)
        values = step(batch)
        total = loss(twin.model(batch), batch)["total"]
        assert torch.allclose(values["total"], total)
        assert not values["total"].requires_grad
        total.backward()
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        assert norm > 0.1
        assert torch.allclose(values["gradient_norm"], norm, rtol=1e-5), "before clipping"
        for gradient in gradients:
            gradient.mul_(0.1 / norm)
        adam.step()
        adam.zero_grad()
    assert all(parameter.grad is None for parameter in zipped.model.parameters())
    assert len(optimizer.state) == len(trained)
    for (name, found), expected in zip(zipped.model.named_parameters(), twin.model.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-5), name


def test_frozen_parameters_get_no_gradient_and_no_state() -> None:
    zipped = small()
    optimizer, step = prepared(zipped)
    before = {name: parameter.clone() for name, parameter in zipped.model.named_parameters()}
    step(bucketed(zipped, 0))
    for name, parameter in zipped.model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("towers.text."), name
        assert (parameter in optimizer.state) == parameter.requires_grad


def test_the_device_is_the_best_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert backend("auto").device() == backend("cpu").device() == torch.device("cpu")
    with pytest.raises(ZippkitError, match=r"device: cuda was asked for, but torch sees no such device"):
        backend("cuda")
    for name in ("cuda", "tpu"):
        there = SimpleNamespace(type=name)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda there=there, **_: there)
        assert backend("auto").name == backend(name).name == name
        assert backend("cpu").device() == torch.device("cpu")
        assert backend("auto").static == (name == "tpu"), "what compiles every shape is given few"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_phase_asks_its_device_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dynamo's own checks and torch's eager kernels, so that nothing but the numbers is compared."""
    asked: list[Any] = []

    def compile_eagerly(self: CPU, function: Any) -> Any:
        asked.append(function.__qualname__)
        return torch.compile(function, dynamic=False, fullgraph=True, backend="eager")

    monkeypatch.setattr(CPU, "compile", compile_eagerly)
    zipped = small()
    batch = bucketed(zipped, 0)
    plain = prepared(small())[1](batch)
    assert not asked
    compiled = prepared(zipped, compile=True)[1](batch)
    assert sorted(asked) == ["Attending.write", "GatedCrossAttention.read", "Layer.forward"]
    assert torch.allclose(plain["total"], compiled["total"])
