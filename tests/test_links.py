"""Gated cross-attention against the design's equation, written as loops; and that blind positions are left alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from compositions import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zippkit.layers import mlp
from zippkit.links.base import Memory
from zippkit.links.configs import GatedCrossAttentionConfig
from zippkit.links.gated_cross_attention import GatedCrossAttention

D_SOURCE, D_TARGET, N_HEADS = 6, 8, 2
HEAD = D_TARGET // N_HEADS

# Two rows. In the first, text before speech before text; in the second, no speech but padding.
TARGET_ORDER = torch.tensor([[0, 1, 7, 8, 9], [0, 1, 2, -1, -1]])
SOURCE_ORDER = torch.tensor([[2, 3, 4, 5, 6, -1], [-1, -1, -1, -1, -1, -1]])
TARGET_POSITIONS = torch.arange(5).expand(2, 5)
SOURCE_POSITIONS = torch.arange(6).expand(2, 6)


def make_link(dtype: torch.dtype = torch.float64, randomly: bool = True, **config: Any) -> GatedCrossAttention:
    torch.manual_seed(0)
    settings = GatedCrossAttentionConfig(n_heads=N_HEADS, ffn_mult=2, **config)
    link = GatedCrossAttention(settings, D_SOURCE, D_TARGET, mlp((D_SOURCE, 16, 16, D_TARGET), "relu")).to(dtype)
    if randomly:
        randomise(link)
    return link


def states(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    target, source = (torch.randn(2, n, d, generator=generator, dtype=dtype) for n, d in ((5, D_TARGET), (6, D_SOURCE)))
    return scale * target, scale * source


def run(link: GatedCrossAttention, target: Tensor, source: Tensor) -> Tensor:
    return link.read(target, TARGET_ORDER, TARGET_POSITIONS, link.write(source, SOURCE_ORDER, SOURCE_POSITIONS))


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt() * weight


def turn(x: Tensor, position: int, theta: float) -> Tensor:
    """Rotate the pair (x[i], x[i + HEAD / 2]) by position * theta^(-2i / HEAD); angles are float32, as everywhere."""
    out = x.clone()
    for i in range(HEAD // 2):
        frequency = theta ** -(torch.tensor(2.0 * i) / HEAD)
        angle = torch.tensor(float(position)) * frequency
        cos, sin = angle.cos().double(), angle.sin().double()
        out[i] = x[i] * cos - x[i + HEAD // 2] * sin
        out[i + HEAD // 2] = x[i + HEAD // 2] * cos + x[i] * sin
    return out


def naive(link: GatedCrossAttention, target: Tensor, source: Tensor) -> Tensor:
    """The design's equation, one token at a time::

    a = u + tanh(g_a) * Attn(norm(u), F(norm(s)))
    h = a + tanh(g_f) * FFN(norm(a))               h = u on blind positions
    """
    weights, config = dict(link.named_parameters()), link.config
    out = target.clone()
    for row in range(len(target)):
        for t in range(target.shape[1]):
            seen = [s for s in range(source.shape[1]) if 0 <= SOURCE_ORDER[row, s] < TARGET_ORDER[row, t]]
            if not seen:
                continue
            u = target[row, t]
            query = weights["query.weight"] @ norm(u, weights["attention_norm.weight"])
            found = torch.zeros(D_TARGET, dtype=torch.float64)
            for head in (slice(HEAD * h, HEAD * (h + 1)) for h in range(N_HEADS)):
                scores, values = [], []
                for s in seen:
                    x = source[row, s]
                    x = norm(x, weights["source_norm.weight"]) if config.norm_source else x
                    x = torch.relu(weights["projection.0.weight"] @ x + weights["projection.0.bias"])
                    x = torch.relu(weights["projection.2.weight"] @ x + weights["projection.2.bias"])
                    x = weights["projection.4.weight"] @ x + weights["projection.4.bias"]
                    q, k = query[head], (weights["key.weight"] @ x)[head]
                    if config.positions == "rotary":
                        q = turn(q, int(TARGET_POSITIONS[row, t]), config.rope_theta)
                        k = turn(k, int(SOURCE_POSITIONS[row, s]), config.rope_theta)
                    scores.append(q @ k / math.sqrt(HEAD))
                    values.append((weights["value.weight"] @ x)[head])
                found[head] = torch.softmax(torch.stack(scores), 0) @ torch.stack(values)
            a = u + torch.tanh(weights["attention_gate"]) * (weights["output.weight"] @ found)
            inner = weights["feed_forward.0.weight"] @ norm(a, weights["feed_forward_norm.weight"])
            inner = torch.nn.functional.gelu(inner + weights["feed_forward.0.bias"])
            ffn = weights["feed_forward.2.weight"] @ inner + weights["feed_forward.2.bias"]
            out[row, t] = a + torch.tanh(weights["feed_forward_gate"]) * ffn
    return out


@pytest.mark.parametrize("positions", ["rotary", "none"])
@pytest.mark.parametrize("start", ["zero_outputs", "zero_gates"])
@pytest.mark.parametrize("norm_source", [True, False])
def test_the_equation(positions: str, start: str, norm_source: bool) -> None:
    link = make_link(positions=positions, start=start, norm_source=norm_source, rope_theta=100.0)
    target, source = states()
    with torch.no_grad():
        found, expected = run(link, target, source), naive(link, target, source)
    assert (found - expected).abs().max() < 1e-12
    assert (found - target)[0, 2:].abs().min() > 1e-6, "it does something"


@pytest.mark.parametrize("start", ["zero_outputs", "zero_gates"])
def test_it_starts_as_the_identity_and_still_learns(start: str) -> None:
    link = make_link(torch.float32, randomly=False, start=start)
    target, source = states(torch.float32)
    out = run(link, target, source)
    assert torch.equal(out, target)
    (out * torch.randn_like(out)).sum().backward()
    learns = {name for name, p in link.named_parameters() if p.grad is not None and p.grad.any()}
    by_gates = {"attention_gate", "feed_forward_gate"}
    by_outputs = {"output.weight", "feed_forward.2.weight", "feed_forward.2.bias"}
    assert learns == (by_gates if start == "zero_gates" else by_outputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_blind_positions_are_left_alone_bit_for_bit(dtype: torch.dtype) -> None:
    link, (target, source) = make_link(dtype), states(dtype)
    out = run(link, target, source)
    blind = torch.tensor([[True, True, False, False, False], [True] * 5])
    assert torch.equal(out[blind], target[blind])
    assert not torch.isclose(out, target).all(dim=-1)[~blind].any()


def test_what_comes_later_or_is_padding_changes_nothing() -> None:
    link, (target, source) = make_link(), states()
    other = source.clone()
    other[0, 5] = 100.0
    other[1] = -100.0
    assert torch.equal(run(link, target, source), run(link, target, other))
    late = torch.where(SOURCE_ORDER >= 5, 8, SOURCE_ORDER)
    memory = link.write(source, late, SOURCE_POSITIONS)
    moved = link.read(target, TARGET_ORDER, TARGET_POSITIONS, memory)
    changed = link.read(
        target, TARGET_ORDER, TARGET_POSITIONS, link.write(source + (late == 8)[..., None], late, SOURCE_POSITIONS)
    )
    assert torch.equal(moved[0, :4], changed[0, :4]), "orders 0 to 8 do not see what is visible from 8 on"
    assert not torch.equal(moved[0, 4], changed[0, 4]), "order 9 does"


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_gradients_are_finite_and_blind_positions_give_none(scale: float) -> None:
    """A row that sees nothing must not turn into NaN, nor 0 * NaN into a gradient."""
    link, (target, source) = make_link(torch.float32), states(torch.float32, scale)
    target, source = target.requires_grad_(), source.requires_grad_()
    out = run(link, target, source)
    assert out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in link.parameters())
    assert target.grad is not None
    assert source.grad is not None
    assert target.grad.isfinite().all()
    assert torch.equal(target.grad[1], 2 * target[1]), "as if the link were not there"
    assert not source.grad[0, 5].any(), "padding"
    assert not source.grad[1].any(), "a row that nobody reads"
    if scale == 1:
        assert source.grad[0, :5].any(dim=-1).all()


def test_no_kernel_meets_a_row_that_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those at hand turn such a row into zeros; others, into NaN."""
    link, (target, source) = make_link(), states()
    expected = run(link, target, source)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = (q @ k.mT / HEAD**0.5).masked_fill(~mask[:, None], float("-inf"))
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)

    monkeypatch.setattr("zippkit.links.gated_cross_attention.attend", attend)
    found = run(link, target.requires_grad_(), source)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    found.sum().backward()
    assert target.grad is not None
    assert target.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in link.parameters())


def test_a_batch_that_is_blind_everywhere_gives_no_gradient() -> None:
    link, (target, source) = make_link(torch.float32), states(torch.float32)
    memory = link.write(source, torch.full_like(SOURCE_ORDER, -1), SOURCE_POSITIONS)
    out = link.read(target, TARGET_ORDER, TARGET_POSITIONS, memory)
    assert torch.equal(out, target)
    out.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in link.parameters())


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(1, 5), unique=True, max_size=3).map(sorted))
def test_a_memory_written_in_parts_is_the_memory(cuts: list[int]) -> None:
    link, (target, source) = make_link(), states()
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, 6], strict=True):
        run_of = slice(start, stop)
        parts.append(link.write(source[:, run_of], SOURCE_ORDER[:, run_of], SOURCE_POSITIONS[:, run_of]))
    found = link.read(target, TARGET_ORDER, TARGET_POSITIONS, Memory.join(parts))
    assert torch.allclose(found, run(link, target, source), rtol=0, atol=1e-12)


def test_target_tokens_read_alone_are_read_alike() -> None:
    link, (target, source) = make_link(), states()
    memory = link.write(source, SOURCE_ORDER, SOURCE_POSITIONS)
    alone = [
        link.read(target[:, t : t + 1], TARGET_ORDER[:, t : t + 1], TARGET_POSITIONS[:, t : t + 1], memory)
        for t in range(5)
    ]
    assert torch.allclose(torch.cat(alone, dim=1), run(link, target, source), rtol=0, atol=1e-12)
