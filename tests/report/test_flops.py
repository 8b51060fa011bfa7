"""Counting without values: what it answers for torch has the shapes, types and order in memory that torch gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from zippkit.report.flops import CountFlops

IDS = torch.tensor([[1, 2], [3, 0]])
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "added": lambda x: x + 1,
    "divided": lambda x: (x > 0) / 2,
    "whole and broken": lambda x: [x.long() + 1, x.long() + 1.0][1],
    "compared": lambda x: x[:, :1] >= x,
    "counted": lambda x: (x > 0).sum(dim=1),
    "everything": lambda x: x.sum(),
    "mean": lambda x: x.mean(dim=(0, -1), keepdim=True),
    "any": lambda x: (x > 0).any(dim=-1),
    "where": lambda x: torch.where(x > 0, x, 0),
    "angles": lambda x: torch.arange(5, device=x.device)[:, None].cos() * x[0, 0],
    "ones": lambda x: torch.ones(3, 3, dtype=torch.bool, device=x.device).tril(),
    "joined": lambda x: torch.cat([x, x.double()], dim=-1),
    "stacked": lambda x: torch.stack([x, x], dim=-1),
    "product": lambda x: x @ x.transpose(1, 2),
    "linear": lambda x: F.linear(x, x[0], x[0, :, 0]),
    "changed": lambda x: x.clone().add_(1),
    "softmax": lambda x: x.softmax(dim=-1),
    "embedded": lambda x: F.embedding(IDS.to(x.device), x[0]),
    "viewed": lambda x: (x.transpose(1, 2) * 2).transpose(1, 2).contiguous().view(4, 30),
    "in half": lambda x: x.bfloat16() * x,
    "attended": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
}


@pytest.mark.parametrize("name", OPERATIONS)
@given(order=st.permutations([0, 1, 2]), gap=st.booleans())
def test_outputs_are_like_torchs_own(name: str, order: list[int], gap: bool) -> None:
    sides = [4, 6, 5]
    x = torch.randn([(1 + gap) * sides[d] for d in order]).permute([order.index(d) for d in range(3)])[:4, :6, :5]
    expected = OPERATIONS[name](x)
    with CountFlops():
        found = OPERATIONS[name](x.to("meta"))
    assert found.is_meta
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@given(order=st.permutations([0, 1, 2]))
def test_outputs_lie_in_memory_as_torchs_do(order: list[int]) -> None:
    """Otherwise a view that works on values would fail without."""
    sides = [4, 6, 5]
    x = torch.empty([sides[d] for d in order], device="meta").permute([order.index(d) for d in range(3)])
    with CountFlops():
        found = (x * 2).stride()
    assert found == (torch.empty(x.shape) * 2 if x.is_contiguous() else torch.empty_like(x)).stride()


def test_products_count_and_entries_do_not() -> None:
    x, weight = torch.empty(3, 4, device="meta"), torch.empty(5, 4, device="meta", requires_grad=True)
    with CountFlops() as counted:
        y = F.linear(x + 1, weight).relu()
        assert counted.total == 2 * 3 * 4 * 5
        y.sum().backward()  # type: ignore[no-untyped-call]
    # The inputs need no gradient, so that backward makes one product too.
    assert counted.total == 2 * 2 * 3 * 4 * 5


def test_what_has_values_keeps_them() -> None:
    with CountFlops() as counted, FlopCounterMode(display=False) as torchs:
        found = torch.ones(2, 3) @ torch.full((3, 2), 2.0)
        assert found.tolist() == [[6, 6], [6, 6]]
        assert torch.cat([found, found + 1]).sum() == 52
    assert counted.total == torchs.get_total_flops() == 24


def test_nothing_can_be_read_off_shapes() -> None:
    with CountFlops(), pytest.raises(RuntimeError, match="meta"):
        (torch.empty(2, device="meta") + 1).sum().item()
