"""Norms and gated activations that keep for their gradient only what cannot be computed again in passing.

Composed of torch's operations, they keep a tensor of the states' size for every product and go through memory for each.
A compiler does the same by itself, so while compiling they are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zippkit.model.linear import Linear

LEAST = 1 << 16
"""Numbers from which a norm of our own is worth its calls."""


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` (arXiv 2002.05202), of two tensors of one shape and dtype."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or gate.dtype != up.dtype:
        return F.silu(gate) * up
    out: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


class _SwiGLU(torch.autograd.Function):
    """Keeps its inputs alone: the activation is computed again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), F.silu(gate).mul_(gradient)


class RMSNorm(nn.RMSNorm):
    """torch's own, with its parameter and its name (arXiv 1910.07467); in float32 on a processor by `rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm (..., D) states."""
        own = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= LEAST and self.weight is not None
        if not own or self.weight.dtype != x.dtype or self.weight.dim() != 1 or torch.compiler.is_compiling():
            return super().forward(x)
        return rms_norm(x, self.weight, torch.finfo(x.dtype).eps if self.eps is None else self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension of (..., D) states."""
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    """Keeps its input and one number for each state."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        out: Tensor = (x * scale).mul_(weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product_ND = (gradient * normed).flatten(0, -2)
        by_weight = product_ND.sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, by_weight, None
        along = torch.mv(product_ND, weight).view(scale.shape).mul_(scale).div_(-x.shape[-1])
        by_x: Tensor = (gradient * weight).mul_(scale).addcmul_(normed, along)
        return by_x, by_weight, None


QUICK: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Linear, nn.RMSNorm: RMSNorm}


def quicken(model: nn.Module) -> None:
    """Let every linear map and norm of torch's compute quickly; subclasses may compute something else, and stay."""
    for module in model.modules():
        module.__class__ = QUICK.get(type(module), type(module))
