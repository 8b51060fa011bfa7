"""Linear maps and norms for one token of each row, laid out once so that a step reads every weight once and fast."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.model.linear import Linear


@runtime_checkable
class Merging(Protocol):
    """A linear map to whose weight something is added."""

    def merged(self) -> Tensor:
        """The matrix (D_out, D_in) that computes the same."""


class Packed:
    """``x W^T + b`` of a few rows, a copy of its weight in whatever layout the device reads fastest.

    On a CPU that is oneDNN's, which is what `torch.compile` packs weights into too; elsewhere, and in float64, it is
    the transposed matrix: a product of one row with a matrix that is read by columns runs on one thread.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, blocked: bool = True) -> None:
        """Copy a map.

        Args:
            weight: (D_out, D_in).
            bias: (D_out,)
            blocked: whether it may be laid out as oneDNN has it, which cannot be compiled.
        """
        self.blocked = blocked and weight.device.type == "cpu" and weight.dtype == torch.float32 and _has_onednn()
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight) if self.blocked else stays(weight.t().contiguous())
        )
        self.bias = bias

    def __call__(self, x_BD: Tensor) -> Tensor:
        """Map (B, D_in) to (B, D_out)."""
        out: Tensor
        if self.blocked:
            out = torch.ops.mkldnn._linear_pointwise(x_BD, self.weight, self.bias, "none", [], "")
        elif self.bias is None:
            out = torch.mm(x_BD, self.weight)
        else:
            out = torch.addmm(self.bias, x_BD, self.weight)
        return out

    def onto(self, x_BD: Tensor, base_BD: Tensor) -> Tensor:
        """Map (B, D_in) and add to (B, D_out)."""
        if self.blocked:
            out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_BD, base_BD, self.weight, self.bias, "add")
            return out
        added = torch.addmm(base_BD, x_BD, self.weight)
        return added if self.bias is None else added + self.bias

    def gelu(self, x_BD: Tensor) -> Tensor:
        """Map (B, D_in) to (B, D_out), and a GELU behind it."""
        if self.blocked:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x_BD, self.weight, self.bias, "gelu", [], "none")
            return out
        return F.gelu(self(x_BD))


def stays(tensor: Tensor) -> Tensor:
    """Tell that a tensor keeps its address, so that a CUDA graph reads it where it is; the tensor itself."""
    if tensor.is_cuda:
        torch._dynamo.mark_static_address(tensor, guard=False)
    return tensor


def _has_onednn() -> bool:
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


class Norm:
    """RMSNorm of (B, D) states; its weight is left to the maps that follow (`after`), where that loses nothing."""

    def __init__(self, norm: nn.RMSNorm, dtype: torch.dtype) -> None:
        self.dim, self.dtype = norm.normalized_shape[0], dtype
        self.eps = torch.finfo(dtype).eps if norm.eps is None else norm.eps
        self.weight = norm.weight
        self.folds = is_wide(dtype)
        self._floor = torch.full((1, 1), self.eps, dtype=dtype, device=norm.weight.device)

    def __call__(self, x_BD: Tensor) -> Tensor:
        """Normed states, without the weight if it `folds`."""
        if not self.folds:
            return F.rms_norm(x_BD, (self.dim,), self.weight, self.eps)
        size = torch.linalg.vector_norm(x_BD, dim=-1, keepdim=True)
        return x_BD * torch.addcmul(self._floor, size, size, value=1 / self.dim).rsqrt_()

    def after(self, weights: Iterable[Tensor]) -> Tensor:
        """The maps (D_out, D) that follow the norm, one below the other, as what it gives needs them."""
        joined = torch.cat(list(weights))
        return joined * self.weight if self.folds else joined


def is_wide(dtype: torch.dtype) -> bool:
    """Whether products of two weights can be kept in a dtype without losing what the states are computed to."""
    return dtype in (torch.float32, torch.float64)


def matrix_of(linear: nn.Module) -> Tensor | None:
    """The matrix (D_out, D_in) of a linear map, its adapter added; None of what is no plain map without a bias."""
    if isinstance(linear, nn.Linear) and type(linear) in (nn.Linear, Linear) and linear.bias is None:
        return linear.weight
    if isinstance(linear, Merging) and isinstance(linear, nn.Linear) and linear.bias is None:
        return linear.merged() if is_wide(linear.weight.dtype) else None
    return None


def matrices_of(linears: Iterable[nn.Module]) -> list[Tensor] | None:
    """`matrix_of` each; None if one has none."""
    found = [matrix_of(linear) for linear in linears]
    known = [matrix for matrix in found if matrix is not None]
    return known if len(known) == len(found) else None


def rotated(x_BHK: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the queries or keys of one token of each row (`zippkit.model.layers.rotary_angles` of it)."""
    cos, sin = (each[:, 0] for each in angles)
    return torch.addcmul(x_BHK * cos, x_BHK.roll(x_BHK.shape[-1] // 2, -1), sin).to(x_BHK.dtype)


def attend_once(q_BHK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_B1S: Tensor | None) -> Tensor:
    """Attention of one token of each row, heads joined: (B, H * K); fewer heads of keys are shared by neighbours."""
    n_rows, n_heads, width = q_BHK.shape
    n_groups = k_BHSK.shape[1]
    queries = q_BHK.reshape(n_rows, n_groups, n_heads // n_groups, width)
    mask = None if mask_B1S is None else mask_B1S[:, None]
    return F.scaled_dot_product_attention(queries, k_BHSK, v_BHSK, attn_mask=mask).reshape(n_rows, n_heads * width)
