"""Cross-attention, gated and plain, against its equations as loops; and that blind positions are left alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from helpers.compositions import randomise
from helpers.link_inputs import feed_forward, linears, norm, tokens, turn
from zippkit.model.layers import mlp
from zippkit.model.links.attending import Attending
from zippkit.model.links.base import Memory
from zippkit.model.links.configs import CrossAttentionConfig, GatedCrossAttentionConfig
from zippkit.model.links.cross_attention import CrossAttention
from zippkit.model.links.gated_cross_attention import GatedCrossAttention

D_SOURCE, D_TARGET, N_HEADS = 6, 8, 2
HEAD = D_TARGET // N_HEADS
PARTS = ("attention", "feed_forward")

# Two rows. In the first, text before speech before text; in the second, no speech but padding.
TARGET_ORDER = torch.tensor([[0, 1, 7, 8, 9], [0, 1, 2, -1, -1]])
SOURCE_ORDER = torch.tensor([[2, 3, 4, 5, 6, -1], [-1, -1, -1, -1, -1, -1]])
TARGET = tokens(TARGET_ORDER)
SOURCE = tokens(SOURCE_ORDER, offset=torch.tensor([[0, 1, 2, 0, 1, 0], [0] * 6]))


def make_link(dtype: torch.dtype = torch.float64, randomly: bool = True, **config: Any) -> GatedCrossAttention:
    torch.manual_seed(0)
    settings = GatedCrossAttentionConfig(n_heads=N_HEADS, ffn_mult=2, **config)
    link = GatedCrossAttention(settings, D_SOURCE, D_TARGET, mlp((D_SOURCE, 16, 16, D_TARGET), "relu")).to(dtype)
    if randomly:
        randomise(link)
    return link


def make_plain(dtype: torch.dtype = torch.float64, randomly: bool = True, **config: Any) -> CrossAttention:
    torch.manual_seed(0)
    settings = CrossAttentionConfig(n_heads=N_HEADS, **config)
    link = CrossAttention(settings, D_SOURCE, D_TARGET, mlp((D_SOURCE, D_TARGET), "relu")).to(dtype)
    if randomly:
        randomise(link)
    return link


def states(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    target, source = (torch.randn(2, n, d, generator=generator, dtype=dtype) for n, d in ((5, D_TARGET), (6, D_SOURCE)))
    return scale * target, scale * source


def run(link: Attending, target: Tensor, source: Tensor) -> Tensor:
    return link.read(target, TARGET, link.write(source, SOURCE))


def attended(link: Attending, target: Tensor, source: Tensor, row: int, t: int, seen: list[int]) -> Tensor:
    """What one target token finds: Attn(norm(u), F(norm(s))), with the output projection."""
    weights, config = dict(link.named_parameters()), link.config
    query = weights["query.weight"] @ norm(target[row, t], weights["attention_norm.weight"])
    found = torch.zeros(D_TARGET, dtype=torch.float64)
    for head in (slice(HEAD * h, HEAD * (h + 1)) for h in range(N_HEADS)):
        scores, values = [], []
        for s in seen:
            x = source[row, s]
            x = linears(weights, "projection", norm(x, weights["source_norm.weight"]) if config.norm_source else x)
            q, k = query[head], (weights["key.weight"] @ x)[head]
            if config.positions == "rotary":
                q = turn(q, int(TARGET.positions[row, t]), config.rope_theta)
                k = turn(k, float(SOURCE.positions[row, s]) * config.pace, config.rope_theta)
            elif config.positions == "keys":
                k = turn(k, int(SOURCE.offset[row, s]), config.rope_theta)
            scores.append(q @ k / math.sqrt(HEAD))
            values.append((weights["value.weight"] @ x)[head])
        found[head] = torch.softmax(torch.stack(scores), 0) @ torch.stack(values)
    return weights["output.weight"] @ found


def naive(link: Attending, target: Tensor, source: Tensor) -> Tensor:
    """The design's equation, one token at a time; CALM's is its first line without the gate::

    a = u + tanh(g_a) * Attn(norm(u), F(norm(s)))
    h = a + tanh(g_f) * FFN(norm(a))               h = u on blind positions
    """
    weights, out = dict(link.named_parameters()), target.clone()
    gates = {part: torch.tanh(weights[f"{part}_gate"]) if f"{part}_gate" in weights else 1 for part in PARTS}
    for row in range(len(target)):
        for t in range(target.shape[1]):
            seen = [s for s in range(source.shape[1]) if 0 <= SOURCE_ORDER[row, s] < TARGET_ORDER[row, t]]
            if not seen:
                continue
            out[row, t] += gates["attention"] * attended(link, target, source, row, t, seen)
            if isinstance(link, GatedCrossAttention):
                inner = norm(out[row, t], weights["feed_forward_norm.weight"])
                out[row, t] += gates["feed_forward"] * feed_forward(weights, "feed_forward", inner)
    return out


@pytest.mark.parametrize("make", [make_link, make_plain], ids=["gated", "plain"])
@pytest.mark.parametrize("positions", ["rotary", "keys", "none"])
@pytest.mark.parametrize("norm_source", [True, False])
def test_the_equation(make: Callable[..., Attending], positions: str, norm_source: bool) -> None:
    assert_equation(make(positions=positions, norm_source=norm_source, rope_theta=100.0))


@pytest.mark.parametrize("pace", [0.25, 3.0])
def test_the_equation_where_one_says_more_tokens_than_the_other(pace: float) -> None:
    assert_equation(make_link(pace=pace, rope_theta=100.0))


def test_a_pace_is_of_rotary_positions() -> None:
    with pytest.raises(ValueError, match="`pace` is of `positions: rotary`, not of `keys`; remove it"):
        make_link(pace=2.0, positions="keys")


@pytest.mark.parametrize("gate", ["scalar", "vector", "none"])
def test_gates_of_every_kind(gate: str) -> None:
    link = make_link(gate=gate)
    shapes = {name: tuple(p.shape) for name, p in link.named_parameters() if name.endswith("gate")}
    shape = {"scalar": (), "vector": (D_TARGET,)}.get(gate)
    assert shapes == ({} if shape is None else {f"{part}_gate": shape for part in PARTS})
    assert_equation(link)


def assert_equation(link: Attending) -> None:
    target, source = states()
    with torch.no_grad():
        found, expected = run(link, target, source), naive(link, target, source)
    assert (found - expected).abs().max() < 1e-12
    assert (found - target)[0, 2:].abs().min() > 1e-6, "it does something"


GATES = {"attention_gate", "feed_forward_gate"}
OUTPUTS = {"output.weight", "feed_forward.2.weight", "feed_forward.2.bias"}
STARTS: list[tuple[Callable[..., Attending], dict[str, Any], set[str]]] = [
    (make_link, {"start": "zero_outputs"}, OUTPUTS),
    (make_link, {"start": "zero_outputs", "gate": "vector", "gate_init": 0.5}, OUTPUTS),
    (make_link, {"gate": "none"}, OUTPUTS),
    (make_link, {"start": "zero_gates"}, GATES),
    (make_link, {"start": "zero_gates", "gate": "vector"}, GATES),
    (make_plain, {}, {"output.weight"}),
]


@pytest.mark.parametrize(
    ("make", "config", "expected"), STARTS, ids=lambda given: given.__name__ if callable(given) else str(sorted(given))
)
def test_it_starts_as_the_identity_and_still_learns(
    make: Callable[..., Attending], config: dict[str, Any], expected: set[str]
) -> None:
    link = make(torch.float32, randomly=False, **config)
    target, source = states(torch.float32)
    out = run(link, target, source)
    assert torch.equal(out, target)
    (out * torch.randn_like(out)).sum().backward()
    learns = {name for name, p in link.named_parameters() if p.grad is not None and p.grad.any()}
    assert learns == expected


def test_gates_start_where_they_are_told() -> None:
    for config, value in (({}, 1.0), ({"gate_init": 0.5}, 0.5), ({"start": "zero_gates"}, 0.0)):
        link = make_link(randomly=False, **config)
        assert link.attention_gate is not None
        assert link.feed_forward_gate is not None
        assert link.attention_gate.item() == link.feed_forward_gate.item() == value


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"start": "zero_gates", "gate": "none"}, "`start: zero_gates` needs gates; expected `gate: scalar` or"),
        ({"start": "zero_gates", "gate_init": 0.5}, "gate_init is 0.5, but `start: zero_gates` leaves it no use"),
        ({"gate": "none", "gate_init": 0.5}, "gate_init is 0.5, but `gate: none` leaves it no use; remove `gate_init`"),
        ({"gate_init": 0.0}, "gates of 0 over zero outputs never learn; write `start: zero_gates`"),
    ],
)
def test_settings_that_contradict_each_other(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        GatedCrossAttentionConfig(**config)


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
    moved = link.read(target, TARGET, link.write(source, tokens(late)))
    changed = link.read(target, TARGET, link.write(source + (late == 8)[..., None], tokens(late)))
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

    monkeypatch.setattr("zippkit.model.links.attending.attend", attend)
    found = run(link, target.requires_grad_(), source)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    found.sum().backward()
    assert target.grad is not None
    assert target.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in link.parameters())


def test_a_batch_that_is_blind_everywhere_gives_no_gradient() -> None:
    link, (target, source) = make_link(torch.float32), states(torch.float32)
    out = link.read(target, TARGET, link.write(source, tokens(torch.full_like(SOURCE_ORDER, -1))))
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
        parts.append(link.write(source[:, run_of], SOURCE.part(run_of)))
    found = link.read(target, TARGET, Memory.join(parts))
    assert torch.allclose(found, run(link, target, source), rtol=0, atol=1e-12)


def test_target_tokens_read_alone_are_read_alike() -> None:
    link, (target, source) = make_link(), states()
    memory = link.write(source, SOURCE)
    alone = [link.read(target[:, t : t + 1], TARGET.part(slice(t, t + 1)), memory) for t in range(5)]
    assert torch.allclose(torch.cat(alone, dim=1), run(link, target, source), rtol=0, atol=1e-12)
