"""Layers and sites that are compiled by themselves: one graph for equal ones, and what an uncompiled step computes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

import zippkit
from helpers.compositions import bucketed, link, make, randomise, tower
from zippkit.evaluation.certificates.causality import sees_no_future
from zippkit.evaluation.certificates.equation import computes_the_equation
from zippkit.model import linear
from zippkit.model.economy import SPENDS, Economy
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.parallel import Parallel
from zippkit.spec.phase import Phase
from zippkit.training.backends import CPU
from zippkit.training.fsdp import split
from zippkit.training.optimizer import build_optimizer
from zippkit.training.parallel import World
from zippkit.training.regions import Regions
from zippkit.training.step import build_step

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")]
BOTH = {"text": tower(2, freeze=True, input_projection={}), "speech": tower(2)}
CASES: dict[str, dict[str, Any]] = {
    "gated cross-attention": {
        "towers": BOTH,
        "links": [link("speech", "text", every=1), link("text", "speech", every=1)],
    },
    "prefix": {"towers": BOTH, "links": [{"kind": "prefix", "from": "speech", "into": "text", "config": {"stack": 2}}]},
    "joint attention": {
        "towers": {"text": tower(2), "speech": tower(2)},
        "links": [
            {"kind": "joint_attention", "from": "speech", "into": "text", "every": 1},
            {"kind": "joint_attention", "from": "text", "into": "speech", "every": 1},
        ],
    },
}


class Quick(CPU):
    """With dynamo's graphs and autograd's, and torch's own kernels; counts the graphs of each method."""

    def __init__(self, inner: str = "aot_eager") -> None:
        self.graphs: Counter[str] = Counter()
        self.inner = inner

    def compile(self, function: Any) -> Any:
        def counted(graph: Any, inputs: Any) -> Any:
            self.graphs[function.__qualname__] += 1
            return torch._dynamo.lookup_backend(self.inner)(graph, inputs)

        return torch.compile(function, dynamic=False, fullgraph=True, backend=counted)


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def composed(case: str) -> zippkit.Composition:
    zipped = zippkit.compile(CompositionSpec.model_validate({"name": "tiny", **CASES[case]}))
    randomise(zipped.model)
    return zipped


def steps(zipped: zippkit.Composition, device: CPU, n_steps: int, **more: Any) -> list[dict[str, float]]:
    phase = Phase(steps=10, learning_rate=1e-3, **more)
    optimizer = build_optimizer(zipped.model, learning_rates(zipped.spec, phase), phase)
    step = build_step(zipped.model.train(), optimizer, phase, device)
    found = [step(bucketed(zipped, 0))]
    with torch._dynamo.config.patch(error_on_recompile=True):
        found += [step(bucketed(zipped, number)) for number in range(1, n_steps)]
    return [{name: float(value) for name, value in values.items()} for values in found]


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_without_a_compiler_and_compile_once(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain, device = steps(composed(case), CPU(), 3), Quick()
    found = steps(composed(case), device, 3, compile=True)
    assert capsys.readouterr().err.startswith("compile: first step of each batch size compiles; took ")
    for one, other in zip(found, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert max(device.graphs.values()) <= 2, "the frozen tower's and the trained one's"


def test_equal_layers_and_sites_share_a_graph() -> None:
    """However many layers: of trained towers alike, one; of links, one for each direction at most."""
    graphs = []
    for n_layers in (2, 3):
        torch._dynamo.reset()
        device = Quick()
        towers = {"text": tower(n_layers), "speech": tower(n_layers)}
        zipped = make(towers, [link("speech", "text", every=1), link("text", "speech", every=1)])
        steps(zipped, device, 1, compile=True)
        graphs.append(dict(device.graphs))
    assert graphs[0] == graphs[1]
    assert graphs[0]["Layer.forward"] == 1, "both towers are of one size"


def test_a_copy_runs_its_own_weights_and_nothing_is_compiled_outside_of_steps() -> None:
    zipped, device = composed("gated cross-attention"), Quick()
    regions, batch = Regions(zipped.model, device.compile), bucketed(zipped, 0)
    other = copy.deepcopy(zipped.model)
    randomise(other, seed=1)
    expected = composed("gated cross-attention").model
    randomise(expected, seed=1)
    assert torch.equal(other(batch)["text"], expected(batch)["text"])
    assert not device.graphs
    with regions.compiled():
        found = other(batch, Economy(regions=True))
    assert device.graphs
    assert torch.allclose(found["text"], expected(batch)["text"], atol=1e-5)


@pytest.mark.parametrize("certificate", [sees_no_future, computes_the_equation])
def test_certificates_hold_for_a_compiled_model(certificate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """C1 and C11, whose every forward pass runs compiled layers and sites."""
    zipped, device = make({"text": tower(1), "speech": tower(1)}, [link("speech", "text", every=1)]), Quick("eager")
    regions, run = Regions(zipped.model, device.compile), ZippedModel.run

    def compiled(model: ZippedModel, *given: Any, economy: Economy = SPENDS, **named: Any) -> dict[str, torch.Tensor]:
        with regions.compiled():
            return run(model, *given, economy=replace(economy, regions=True), **named)

    monkeypatch.setattr(ZippedModel, "run", compiled)
    assert certificate(zipped)
    assert {"Layer.forward", "Attending.write", "GatedCrossAttention.read"} <= set(device.graphs)


@pytest.mark.filterwarnings("ignore")
def test_the_default_compiler_takes_products_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor would take oneDNN's operation for one of frozen weights."""
    monkeypatch.setattr(linear, "LEAST", 0)
    numbers = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=numbers, requires_grad=True) for shape in ((2, 3, 8), (5, 8)))
    results = []
    for run in (torch.compile(linear.linear, dynamic=False, fullgraph=True), torch.nn.functional.linear):
        out = run(x, weight)
        results.append([out, *torch.autograd.grad(out.square().sum(), (x, weight))])
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_what_fsdp_splits_is_compiled_inside(tmp_path: Path) -> None:
    whole = make({"text": tower(2), "speech": tower(2)}, [link("speech", "text", every=1)])
    zipped, device = copy.deepcopy(whole), Quick()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        regions = Regions(zipped.model, device.compile)
        split(zipped.model, zipped.spec, World(), Parallel(shard="all"))
        batch = bucketed(whole, 0)
        with regions.compiled():
            found = zipped.loss(zipped.model(batch, Economy(regions=True)), batch)["total"]
        found.backward()
    finally:
        dist.destroy_process_group()
    expected = whole.loss(whole.model(batch), batch)["total"]
    expected.backward()
    assert torch.allclose(found, expected)
    assert device.graphs["Layer.forward"] == 1
    gradients = dict(whole.model.named_parameters())
    for name, parameter in zipped.model.named_parameters():
        expected_grad, grad = gradients[name].grad, parameter.grad
        if expected_grad is not None:
            whole_grad = grad.full_tensor() if isinstance(grad, DTensor) else grad
            assert torch.allclose(whole_grad, expected_grad, atol=1e-4), name
