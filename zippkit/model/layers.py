"""Small layers that towers, links and projections share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.batch.batch import TowerBatch

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


NARROW_FROM = 512
"""Keys up to which a processor's attention is trained in float32, whatever autocast says."""


class Dropout(nn.Dropout):
    """torch's own, whose rate a phase of training may set (`set_dropout`); only links and native towers have any."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.own = p
        """What the config says."""


def set_dropout(model: nn.Module, p: float | None) -> None:
    """Set the rate of every link and native tower; None: what their configs say."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = module.own if p is None else p


def at_least_float32(x: Tensor) -> Tensor:
    """Cast what is narrower (bfloat16, under autocast or in a tower of it) to float32; float64 stays.

    States between layers and links, losses and position ids are computed in it.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mlp(widths: Sequence[int], activation: str, activate_last: bool = False) -> nn.Sequential:
    """Linear layers through ``widths`` with an activation between them, and after the last one if asked.

    Initialised as in arXiv 1502.01852, so that a deep projection hands on states of the size that it was given.
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        linear = nn.Linear(n_in, n_out)
        activated = activate_last or i < len(widths) - 2
        nn.init.normal_(linear.weight, std=((2 if activated else 1) / n_in) ** 0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, ACTIVATIONS[activation]()] if activated else [linear]
    return nn.Sequential(*layers)


def zero_last(layers: nn.Sequential) -> None:
    """Start with an output of zero: the last linear layer's weight and bias become 0."""
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)


class ResidualMLP(nn.Module):
    """``x + MLP(x)``, the identity at initialisation."""

    def __init__(self, widths: Sequence[int], activation: str) -> None:
        super().__init__()
        self.mlp = mlp(widths, activation)
        zero_last(self.mlp)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) states to (B, T, D)."""
        projected: Tensor = self.mlp(x_BTD)
        return x_BTD + projected


def rotary_angles(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, T, head_dim) of the rotary embedding (arXiv 2104.09864), in the half-split layout.

    The first half of the sines is negative, so that `rotate` has no sign to change.

    Args:
        positions: (B, T) position ids.
        head_dim: width of a head.
        theta: base of the frequencies.
        dtype: of the queries and keys; angles are float32 at least, since bfloat16 has no odd positions above 256.
    """
    wide = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=wide) / head_dim
    angles = positions[:, None, :, None].to(wide) * theta**-exponents
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def angles_of(
    tokens: TowerBatch, positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype, pace: float = 1
) -> tuple[Tensor, Tensor]:
    """Rotary angles of (B, T) positions times ``pace``, made once in a forward pass for all layers and sites.

    Args:
        tokens: of which the positions are a column.
        positions: position ids.
        head_dim: width of a head.
        theta: base of the frequencies.
        dtype: of the queries and keys.
        pace: see `zippkit.model.links.configs.AttendingConfig`.
    """
    wide = torch.promote_types(dtype, torch.float32)

    def make() -> tuple[Tensor, Tensor]:
        return rotary_angles(positions if pace == 1 else positions.to(wide) * pace, head_dim, theta, wide)

    return tokens.once(("angles", head_dim, theta, wide, pace), (positions,), make)


def rotate(x_BHTK: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate queries or keys by their position ids' angles (`rotary_angles`)."""
    cos, sin = angles
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.addcmul(x_BHTK * cos, torch.cat((second, first), dim=-1), sin).to(x_BHTK.dtype)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Split heads: (B, T, H * K) to (B, H, T, K)."""
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2)


def attend(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of T queries over S keys, heads joined again: (B, T, H * K).

    Args:
        q_BHTK: queries, positions applied.
        k_BHSK: keys, positions applied; fewer heads than queries have is grouped-query attention.
        v_BHSK: values.
        mask: (B, T, S) bool, True where a query may attend; None for plain causal attention (T == S).
    """
    return join_heads(attend_heads(q_BHTK, k_BHSK, v_BHSK, mask, causal=mask is None))


def attend_heads(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_BTS: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Attention as of `attend`, heads apart: (B, H, T, K); without a mask every key is seen, unless it is causal."""
    if not _wider(q_BHTK, k_BHSK):
        return _attended(q_BHTK, k_BHSK, v_BHSK, mask_BTS, causal)
    narrow = torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", enabled=False):
        return _attended(q_BHTK.float(), k_BHSK.float(), v_BHSK.float(), mask_BTS, causal).to(narrow)


def _wider(q_BHTK: Tensor, k_BHSK: Tensor) -> bool:
    # Under autocast a processor without matrix instructions computes the gradient of short rows in 0.6 of the time in
    # float32; of long ones bfloat16 is quicker.
    return (
        q_BHTK.device.type == "cpu"
        and q_BHTK.requires_grad
        and k_BHSK.shape[2] <= NARROW_FROM
        and torch.is_autocast_enabled("cpu")
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _attended(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_BTS: Tensor | None, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BHSK,
        v_BHSK,
        attn_mask=None if mask_BTS is None else mask_BTS[:, None],
        is_causal=causal,
        enable_gqa=q_BHTK.shape[1] != k_BHSK.shape[1],
    )


def join_heads(x_BHTK: Tensor) -> Tensor:
    """Join heads: (B, H, T, K) to (B, T, H * K)."""
    return x_BHTK.transpose(1, 2).flatten(2)
