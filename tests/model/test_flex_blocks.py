"""Flex attention's block mask from integers: the table, block by block; on a GPU, values and gradients too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

from zippkit.model import flex_blocks
from zippkit.model.flex_blocks import attend_by_flex, takes
from zippkit.model.sight import Sight
from zippkit.model.visibility import Visibility

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]


@st.composite
def sights(draw: st.DrawFn) -> Sight:
    """Two rows of rising orders, in some documents."""

    def rising(n: int) -> Tensor:
        steps = st.lists(st.integers(0, 3), min_size=n, max_size=n)
        return torch.tensor([draw(steps) for _ in range(2)]).cumsum(dim=1)

    order, key = rising(draw(st.integers(1, 9))), rising(draw(st.integers(1, 9)))
    start = torch.where(order > 6, 5, 0) if draw(st.booleans()) else None
    key = torch.where(key > draw(st.integers(3, 30)), -1, key)
    return Sight(order, key, start)


def described(sight: Sight, block_size: int, monkeypatch: pytest.MonkeyPatch, known: bool) -> BlockMask:
    """The block mask as it is made where the host has a description, and where it has none."""
    monkeypatch.setattr(flex_blocks, "BLOCK", block_size)
    limits = sight.limits() if known else None
    start = torch.zeros_like(sight.order) if sight.start is None else sight.start
    run = torch.zeros_like(sight.key[0])
    compared = flex_blocks.Comparison(start[..., None], sight.order[..., None], sight.key, run)
    return flex_blocks.block_mask(compared, limits)


@settings(max_examples=40)
@given(sight=sights(), block_size=st.sampled_from([1, 2, 4]), known=st.booleans())
def test_blocks_are_those_of_the_table(sight: Sight, block_size: int, known: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = described(sight, block_size, patch, known)
    table = sight.table()
    n_rows, n_queries, n_keys = table.shape
    assert torch.equal(create_mask(found.mask_mod, n_rows, 1, n_queries, n_keys, "cpu")[:, 0], table)
    assert found.full_kv_num_blocks is not None
    assert found.full_kv_indices is not None
    partly = _listed(found.kv_num_blocks, found.kv_indices)
    fully = _listed(found.full_kv_num_blocks, found.full_kv_indices)
    assert not (partly & fully).any()
    for row, down, across in torch.cartesian_prod(*(torch.arange(n) for n in partly.shape)).tolist():
        here = table[row, block_size * down :, block_size * across :][:block_size, :block_size]
        if fully[row, down, across]:
            assert here.all()
        elif not partly[row, down, across]:
            assert not here.any()
        if known and here.all() and here.shape[1] == block_size and here.shape[0] == block_size:
            assert fully[row, down, across], "what is seen whole is not compared"


def _listed(counts: Tensor, indices: Tensor) -> Tensor:
    """(B, blocks of queries, blocks of keys) bool, from each block's list."""
    held = torch.arange(indices.shape[-1]) < counts[:, 0, :, None]
    return torch.zeros_like(held).scatter(2, indices[:, 0].long(), held)


def long_sights(device: str) -> list[Sight]:
    """Runs of keys longer than a block: documents, padding, and a row that sees nothing at first."""
    order = torch.arange(300, device=device).expand(2, -1) // 20 * 20
    key = torch.arange(280, device=device).expand(2, -1).clone()
    key[1, 200:] = -1
    start = torch.where(order >= 140, 135, 0)
    return [Sight(order, key, start), Sight(order, key + 7)]


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_flex_attends_as_the_table_does(heads: tuple[int, int]) -> None:
    one, other = long_sights("cpu")
    for sights in ([one], [other], [one, other]):
        seen = Visibility(sights)
        n_rows, n_queries, n_keys = seen.shape
        q, k, v = (torch.randn(n_rows, h, n, 16) for h, n in ((heads[0], n_queries), *[(heads[1], n_keys)] * 2))
        found = attend_by_flex(q, k, v, seen.block_mask).transpose(1, 2).flatten(2)
        sees = seen.sees.expand_as(found)
        assert torch.allclose(found[sees], seen.attend(q, k, v)[sees], atol=1e-5)
        assert not found[~sees].any(), "blind queries are finite"


def test_kernels_take_wide_heads_of_floats() -> None:
    assert takes(torch.zeros(1, 1, 1, 16))
    assert not takes(torch.zeros(1, 1, 1, 8))
    assert not takes(torch.zeros(1, 1, 1, 16, dtype=torch.float64))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_flex_on_a_gpu_attends_as_the_table_does(heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for sights in ([each] for each in long_sights("cuda")):
        table = Visibility(sights)
        monkeypatch.setattr("zippkit.model.visibility.FLEX_FROM", 0)
        flex = Visibility(sights)
        assert (table.rendering, flex.rendering) == ("table", "flex")
        n_rows, n_queries, n_keys = table.shape
        leaves = [
            torch.randn(n_rows, h, n, 64, device="cuda", requires_grad=True)
            for h, n in ((heads[0], n_queries), *[(heads[1], n_keys)] * 2)
        ]
        outs = [each.attend(*leaves) * table.sees for each in (table, flex)]
        assert torch.allclose(*outs, atol=1e-3)
        found = [torch.autograd.grad(out.sin().sum(), leaves) for out in outs]
        for one, other in zip(*found, strict=True):
            assert torch.allclose(one, other, atol=1e-2)
        monkeypatch.undo()
