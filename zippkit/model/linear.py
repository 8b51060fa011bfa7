"""Linear maps in float32 on a processor, through oneDNN: the same products, in less than half the time on some.

torch gives float32 products to MKL, which on processors that are not Intel's takes no AVX-512; oneDNN, to which it
gives bfloat16, does (decision 0037). Both add up in float32.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEAST = 1 << 22
"""Multiplications of a product from which oneDNN's calls are worth their cost."""

FLOPS: dict[Any, Any] = {}
"""For `torch.utils.flop_counter.FlopCounterMode`, which does not count it: operations by shapes."""
if torch._C._has_mkldnn:
    FLOPS[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * prod(x) * weight[0]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, as `torch.nn.functional.linear`, by whatever computes it quickly.

    Args:
        x: (..., n_in).
        weight: (n_out, n_in).
        bias: (n_out,)
    """
    if not _suits(x, weight, bias):
        return F.linear(x, weight, bias)
    # Rows that stand apart, as those of a slice, take oneDNN a hundred times as long.
    x, weight = x.contiguous(), weight.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        mapped: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return mapped
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """torch's own, with its parameters and their names, whose products are `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out)."""
        return linear(input, self.weight, self.bias)


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.numel() * weight.shape[0] >= LEAST
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._has_mkldnn
        and not torch.compiler.is_exporting()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # Inductor takes oneDNN's own operation for one of frozen weights, so it is given one that it does not know.
    run = torch.ops.zippkit.product if torch.compiler.is_compiling() else _by_onednn
    out: Tensor = run(x, weight, bias)
    return out


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


_LIBRARY = torch.library.Library("zippkit", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("product(Tensor x, Tensor weight, Tensor? bias) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.impl("product", _by_onednn, "CPU")  # type: ignore[no-untyped-call]


@torch.library.register_fake("zippkit::product", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shaped(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    del bias
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """``left.T @ right`` of (N, V) and (N, D); oneDNN copies its first operand, so the narrower one comes first."""
    if left.shape[1] <= right.shape[1]:
        return _product(left.T, right.T)
    return _product(right.T, left.T).T


class _Linear(torch.autograd.Function):
    """Its gradients are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        by_x = _product(gradient, weight.T) if ctx.needs_input_grad[0] else None
        flat_NV = gradient.flatten(0, -2)
        by_weight = _outer(flat_NV, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        by_bias = flat_NV.sum(0) if ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias
