"""Linear maps through oneDNN: what they compute, beside float64, and where torch's own are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from helpers.compositions import link, make, tower
from zippkit.model import linear as module
from zippkit.model.fused import quicken
from zippkit.model.linear import FLOPS, LEAST, Linear, linear

SHAPE = (16, 64), 64, 96
assert LEAST <= 16 * 64 * 64 * 96


def operands(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, n_in, n_out = SHAPE
    shapes: list[tuple[int, ...]] = [(*rows, n_in), (n_out, n_in), (n_out,)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def test_onednn_is_never_given_rows_that_stand_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of which some ids are left out has such a gradient; a product of it took 2 seconds instead of 2 ms."""
    given: list[Tensor] = []

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        given.extend((x, weight))
        return F.linear(x, weight, bias)

    monkeypatch.setattr(module, "_product", watched)
    x, weight, _ = operands()
    linear(x[..., :60], weight[:, :60])[..., :90].square().sum().backward()
    assert len(given) == 6
    assert all(each.is_contiguous() or each.mT.is_contiguous() for each in given)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("frozen", [(), (0,), (1, 2)])
def test_values_and_gradients_are_those_of_float64(biased: bool, frozen: tuple[int, ...]) -> None:
    narrow, wide = operands(), operands(torch.float64)
    for each in frozen:
        narrow[each].requires_grad_(False)
        wide[each].requires_grad_(False)
    kept = slice(None) if biased else slice(2)
    found, expected = linear(*narrow[kept]), F.linear(*wide[kept])
    assert found.grad_fn is not None
    assert type(found.grad_fn).__name__ == "_LinearBackward"
    assert torch.allclose(found.double(), expected, atol=1e-4, rtol=1e-5)
    (found.sin().sum() + expected.sin().sum()).backward()
    for each, other in zip(narrow[kept], wide[kept], strict=True):
        assert (each.grad is None) == (other.grad is None)
        assert each.grad is None or torch.allclose(each.grad.double(), other.grad, atol=2e-3, rtol=1e-4)


def test_without_a_gradient_nothing_is_kept() -> None:
    x, weight, bias = operands()
    with torch.no_grad():
        assert torch.allclose(linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-4)
    assert linear(x.detach(), weight.detach(), bias.detach()).grad_fn is None


def test_strided_inputs() -> None:
    x, weight, _ = operands()
    assert torch.allclose(linear(x.transpose(0, 1), weight), F.linear(x.transpose(0, 1), weight), atol=1e-4)


@pytest.mark.parametrize("case", ["small", "bfloat16", "autocast", "meta"])
def test_other_products_are_torchs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr(module, "_product", never)
    x, weight, _ = operands(torch.bfloat16 if case == "bfloat16" else torch.float32)
    if case == "small":
        x = x[:1]
    if case == "meta":
        x, weight = x.to("meta"), weight.to("meta")
    with torch.autocast("cpu", enabled=case == "autocast"):
        assert linear(x, weight).shape == (*x.shape[:-1], len(weight))


def test_a_models_maps_are_quick_and_keep_their_names() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2)), nn.MultiheadAttention(2, 1))
    names = list(model.state_dict())
    quicken(model)
    assert list(model.state_dict()) == names
    assert [type(each) for each in model.modules() if isinstance(each, Linear)] == [Linear, Linear]
    assert type(model[2].out_proj) is not Linear, "a subclass computes something of its own"
    zipped = make({"text": tower(1, 8), "speech": tower(1, 8)}, [link("speech", "text", every=1)])
    assert not [name for name, each in zipped.model.named_modules() if type(each) is nn.Linear]


def test_its_operations_are_counted() -> None:
    x, weight, bias = operands()
    counts = []
    for run in (linear, F.linear):
        with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
            run(x, weight, bias).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_a_compiled_graph_holds_it() -> None:
    """One graph, forward and backward, whose results are those of eager to the tolerance of another order."""
    compiled = torch.compile(linear, fullgraph=True, dynamic=False, backend="aot_eager")
    results = []
    for run in (compiled, linear):
        given = operands()
        out = run(*given)
        out.sin().sum().backward()
        results.append([out.detach(), *(each.grad for each in given)])
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-5) for a, b in zip(*results, strict=True))
