"""Norms and gated activations of our own beside torch's in float64, and attention that is trained in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.model.fused import LEAST, RMSNorm, quicken, rms_norm, swiglu
from zippkit.model.layers import NARROW_FROM, attend_heads

ROWS, WIDTH = 8, 24


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(function: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    """The value, and the gradients that there are."""
    leaves = [each.detach().requires_grad_(each.requires_grad) for each in given]
    out = function(*leaves)
    out.sin().sum().backward()
    return [out.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("frozen", [(), (0,), (1,)])
def test_norms_and_their_gradients_are_those_of_float64(frozen: tuple[int, ...]) -> None:
    given = [numbers(2, ROWS, WIDTH) * 3, 1 + numbers(WIDTH, seed=1)]
    for i, each in enumerate(given):
        each.requires_grad_(i not in frozen)
    found = gradients(lambda x, weight: rms_norm(x, weight, 1e-3), *given)
    wide = [each.double().detach().requires_grad_(each.requires_grad) for each in given]
    expected = gradients(lambda x, weight: F.rms_norm(x, (WIDTH,), weight, 1e-3), *wide)
    assert len(found) == len(expected) == 3 - len(frozen)
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_is_torchs_to_the_last_bit(dtype: torch.dtype) -> None:
    given = [numbers(ROWS, WIDTH, seed=seed).to(dtype).requires_grad_() for seed in (0, 1)]
    found, expected = gradients(swiglu, *given), gradients(lambda gate, up: F.silu(gate) * up, *given)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_less_is_kept_for_the_gradient() -> None:
    kept: dict[str, int] = {}
    gate, up = (numbers(ROWS, WIDTH, seed=seed).requires_grad_() for seed in (0, 1))
    for name, run in {"ours": swiglu, "torch": lambda gate, up: F.silu(gate) * up}.items():
        addresses: set[int] = set()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (addresses.add(t.data_ptr()), t)[1], lambda t: t):  # noqa: B023
            run(gate * 1, up * 1)
        kept[name] = len(addresses)
    assert kept == {"ours": 2, "torch": 3}


def test_a_models_norms_are_quick_and_keep_their_names() -> None:
    model = nn.Sequential(nn.RMSNorm(256), nn.LayerNorm(256), nn.RMSNorm(256, elementwise_affine=False))
    names, x = list(model.state_dict()), numbers(LEAST // 256, 256)
    plain = model(x)
    quicken(model)
    assert [type(each) for each in model] == [RMSNorm, nn.LayerNorm, RMSNorm]
    assert list(model.state_dict()) == names
    assert type(model[0](x).grad_fn).__name__ == "_RMSNormBackward"
    assert type(model[0](x[:1]).grad_fn).__name__ != "_RMSNormBackward", "a decoded token's is torch's"
    assert torch.allclose(model(x), plain, atol=1e-5)
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("n_keys", [16, NARROW_FROM + 1])
def test_under_autocast_short_rows_attend_in_float32(n_keys: int) -> None:
    q, k, v = (numbers(1, 2, n, 8, seed=seed).requires_grad_() for seed, n in enumerate((16, n_keys, n_keys)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, narrow = attend_heads(q, k, v), F.scaled_dot_product_attention(q, k, v)
    exact = F.scaled_dot_product_attention(q, k, v)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16()) == (n_keys <= NARROW_FROM)
    assert torch.equal(found, narrow) == (n_keys > NARROW_FROM)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend_heads(q, k, v), narrow), "only what is trained"
