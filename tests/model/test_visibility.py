"""Every rendering of who sees whom against a loop over queries in float64: values, gradients, and who is blind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zippkit
from helpers.compositions import link, randomise, tower
from zippkit.batch.batch import Segment, TowerBatch
from zippkit.batch.describe import describe_cross, describe_self
from zippkit.batch.shared import Shared
from zippkit.batch.staircase import Staircase
from zippkit.generation.api import generate_batch
from zippkit.model import visibility
from zippkit.model.attention_blocks import blocks_in, blocks_of
from zippkit.model.layers import attend_heads
from zippkit.model.sight import Sight
from zippkit.model.visibility import Visibility, own_visibility, visibility_of
from zippkit.spec.composition_spec import CompositionSpec

pytestmark = pytest.mark.slow

HEADS = [(2, 2), (4, 2), (3, 1)]


def column(rows: list[list[int]], padding: int) -> Tensor:
    length = max(1, *map(len, rows))
    return torch.tensor([row + [padding] * (length - len(row)) for row in rows])


def tower_batch(rows: list[list[dict[str, int]]]) -> TowerBatch:
    """A batch of single tokens, each with its columns."""
    columns = {
        name: column([[token[name] for token in row] for row in rows], -1)
        for name in ("order", "visible", "segment", "start")
    }
    packed = bool((columns["start"] > 0).any())
    alone = TowerBatch.alone(torch.zeros_like(columns["order"]))
    return alone.__class__(**{**vars(alone), **columns, "start": columns["start"].clamp(min=0), "packed": packed})


@st.composite
def pairs(draw: st.DrawFn) -> tuple[TowerBatch, TowerBatch]:
    """Target and source of a few rows, each of one or more documents of any segments, some of them simultaneous."""
    rows: dict[str, list[list[dict[str, int]]]] = {"t": [], "s": []}
    for _ in range(draw(st.integers(1, 3))):
        row: dict[str, list[dict[str, int]]] = {"t": [], "s": []}
        order = segment = 0
        for _ in range(draw(st.integers(1, 3))):
            start = order
            for kind in draw(st.lists(st.sampled_from(["t", "s", "ts", "-"]), max_size=4)):
                n = draw(st.integers(1, 4))
                for name in kind if kind != "-" else "":
                    row[name] += [
                        {"order": o + len(kind) - 1, "visible": o, "segment": segment, "start": start}
                        for o in range(order, order + n * len(kind), len(kind))
                    ]
                order, segment = order + n * len(kind), segment + 1
        for name, each in rows.items():
            each.append(row[name])
    return tower_batch(rows["t"]), tower_batch(rows["s"])


def naive_mask(target: TowerBatch, source: TowerBatch) -> Tensor:
    """Token by token: a query sees what is visible before it, of its own document."""
    mask = torch.zeros(len(target.order), target.order.shape[1], source.order.shape[1], dtype=torch.bool)
    for b, t, s in torch.cartesian_prod(*(torch.arange(n) for n in mask.shape)).tolist():
        key = int(source.visible[b, s])
        mask[b, t, s] = key >= 0 and int(target.start[b, t]) <= key < int(target.order[b, t])
    return mask


def naive_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """(B, T, H * K) one query at a time, over the keys that it sees; 0 where it sees none."""
    out = torch.zeros_like(q)
    k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], dim=1) for each in (k, v))
    for b, t in mask.any(dim=-1).nonzero().tolist():
        seen = mask[b, t]
        for h in range(q.shape[1]):
            scores = k[b, h, seen] @ q[b, h, t] / q.shape[-1] ** 0.5
            out[b, h, t] = scores.softmax(dim=0) @ v[b, h, seen]
    return out.transpose(1, 2).flatten(2)


def inputs(shape: tuple[int, int, int], heads: tuple[int, int], seed: int) -> list[Tensor]:
    n_rows, n_queries, n_keys = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [(n_rows, heads[0], n_queries, 4), *[(n_rows, heads[1], n_keys, 4)] * 2]
    return [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]


def with_gradients(out: Tensor, leaves: list[Tensor], where: Tensor) -> list[Tensor]:
    """The output at some queries, and gradients of a sum over it."""
    weights = torch.arange(1, out.numel() + 1, dtype=out.dtype).reshape(out.shape).sin() * where
    return [out * where, *torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)]


def assert_attends(seen: Visibility, mask: Tensor, heads: tuple[int, int], seed: int) -> None:
    """Attention and its gradients are those of the loop, wherever something is seen."""
    leaves = [each.requires_grad_() for each in inputs(seen.shape, heads, seed)]
    sees = mask.any(dim=-1, keepdim=True)
    found, expected = seen.attend(*leaves), naive_attention(*leaves, mask)
    assert found.isfinite().all(), "where nothing is seen, too"
    if not sees.any():
        return
    for one, other in zip(with_gradients(found, leaves, sees), with_gradients(expected, leaves, sees), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(pair=pairs(), heads=st.sampled_from(HEADS), seed=st.integers(0, 9), described=st.booleans())
@pytest.mark.parametrize("largest_table", [0, 1 << 20], ids=["blocks", "table"])
def test_links_attend_as_a_loop_does(
    largest_table: int, pair: tuple[TowerBatch, TowerBatch], heads: tuple[int, int], seed: int, described: bool
) -> None:
    target, source = pair
    stairs = describe_cross(target, source) if described else None
    seen = Visibility([Sight(target.order, source.visible, target.document_start, stairs)], largest_table)
    mask = naive_mask(target, source)
    if stairs is not None:
        assert torch.equal(stairs.dense(), mask)
        assert stairs.whole == bool(mask[target.order >= 0].all())
    assert torch.equal(seen.table(), mask)
    assert torch.equal(seen.sees[..., 0], mask.any(dim=-1))
    assert_attends(seen, mask, heads, seed)


@settings(max_examples=40, deadline=None)
@given(pair=pairs(), heads=st.sampled_from(HEADS), causal=st.booleans(), described=st.booleans())
@pytest.mark.parametrize("largest_table", [0, 1 << 20], ids=["blocks", "table"])
def test_own_tokens_are_seen_as_in_a_loop(
    largest_table: int, pair: tuple[TowerBatch, TowerBatch], heads: tuple[int, int], causal: bool, described: bool
) -> None:
    tokens, _ = pair
    if described:
        tokens = TowerBatch(**{**vars(tokens), "own_stairs": describe_self(tokens, causal)})
    real = tokens.order >= 0
    same = tokens.start if causal else tokens.segment
    mask = (same[:, :, None] == same[:, None, :]) & real[:, :, None] & real[:, None, :]
    mask = mask.tril() if causal else mask
    if described and tokens.own_stairs is not None:
        assert torch.equal(tokens.own_stairs.dense(), mask)
    own = own_visibility(tokens, causal)
    if own is None:
        assert not tokens.packed
        plain = torch.ones(mask.shape[1:]).tril().bool()
        assert torch.equal(mask[real], plain.expand_as(mask)[real])
        return
    seen = Visibility(own.sights, largest_table)
    assert torch.equal(seen.table()[real], mask[real])
    assert_attends(seen, mask, heads, 0)


@settings(max_examples=30, deadline=None)
@given(pair=pairs(), heads=st.sampled_from(HEADS))
@pytest.mark.parametrize("largest_table", [0, 1 << 20], ids=["blocks", "table"])
def test_two_runs_of_keys_are_attended_to_together(
    largest_table: int, pair: tuple[TowerBatch, TowerBatch], heads: tuple[int, int]
) -> None:
    target, source = pair
    sights = [Sight(target.order, each.visible, target.document_start) for each in (source, target)]
    mask = torch.cat([naive_mask(target, each) for each in (source, target)], dim=-1)
    seen = Visibility(sights, largest_table)
    assert torch.equal(seen.sees[..., 0], mask.any(dim=-1))
    assert_attends(seen, mask, heads, 1)


@settings(max_examples=60, deadline=None)
@given(pair=pairs(), largest=st.integers(1, 40))
def test_blocks_cover_each_pair_once_and_stay_small(pair: tuple[TowerBatch, TowerBatch], largest: int) -> None:
    stairs = describe_cross(*pair)
    shape = (stairs.n_rows, stairs.n_queries, stairs.n_keys)
    for found in (blocks_of(stairs, largest), blocks_in(shape, largest)):
        covered, times = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape[:2])
        for block in found:
            n_rows, n = block.rows.stop - block.rows.start, block.queries.stop - block.queries.start
            n_keys = block.keys.stop - block.keys.start
            assert not block.masked or n_rows * n * n_keys <= largest or n_rows * n == 1
            covered[block.rows, block.queries, block.keys] = True
            times[block.rows, block.queries] += 1
        assert (covered | ~stairs.dense()).all()
        assert times.max() <= 1


def test_what_is_seen_whole_needs_no_mask_and_rows_need_one_for_all_queries() -> None:
    def seen(orders: list[list[int]], keys: list[list[int]]) -> Visibility:
        target, source = (TowerBatch.alone(column(rows, -1)) for rows in (orders, keys))
        made = [TowerBatch(**{**vars(t), "order": t.tokens, "visible": t.tokens}) for t in (target, source)]
        return Visibility([Sight(made[0].order, made[1].visible, None, describe_cross(*made))])

    whole, rows, table = seen([[5, 6], [7]], [[0, 1], [2, 3]]), seen([[5], [7]], [[0, 1], []]), seen([[1, 5]], [[0, 2]])
    assert [each.rendering for each in (whole, rows, table)] == ["nothing", "row", "table"]
    assert whole.mask is None
    assert rows.mask is not None
    assert rows.mask.tolist() == [[[True, True]], [[True, True]]], "a blind row attends to anything"
    assert rows.sees.tolist() == [[[True]], [[False]]]
    assert whole.sees.tolist() == [[[True], [True]], [[True], [False]]], "padding sees nothing"


def test_one_description_serves_all_sites_of_a_pass_and_no_other_pass() -> None:
    tokens = TowerBatch.alone(torch.zeros(1, 3, dtype=torch.long))
    source = TowerBatch(**{**vars(tokens), "own_stairs": describe_self(tokens, True)})
    passing = [
        TowerBatch(**{**vars(tokens), "stairs": {"s": describe_cross(tokens, source)}, "shared": shared})
        for shared in (Shared({"s": source.visible}), Shared({"s": source.visible}))
    ]
    first = visibility_of(passing[0], source.visible)
    assert visibility_of(passing[0], source.visible) is first
    assert isinstance(first.stairs, Staircase)
    assert visibility_of(passing[1], source.visible) is not first
    assert visibility_of(passing[0], source.visible.clone()).stairs is None, "other keys are not described"


def test_a_description_does_not_outlive_the_columns_that_it_tells_of() -> None:
    tokens = TowerBatch.alone(torch.zeros(2, 3, dtype=torch.long))
    described: Any = TowerBatch(**{**vars(tokens), "own_stairs": describe_self(tokens, True)})
    assert described.to("cpu").own_stairs is described.own_stairs
    for changed in (described.part(slice(1)), described.hidden_before([1, 0]), TowerBatch.join([described] * 2)):
        assert changed.own_stairs is None


@pytest.mark.parametrize("causal", [False, True])
def test_a_block_s_gradient_is_attention_s_own(causal: bool) -> None:
    """Under autocast too, where the block is computed anew in the dtype of the forward pass."""
    leaves = [each.float().requires_grad_() for each in inputs((1, 5, 5), (2, 2), 0)]
    slots = torch.arange(5)[None]
    sight = Sight(slots + 1 if causal else slots + 9, slots)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = Visibility([sight], 0).attend(*leaves)
        whole = attend_heads(*leaves, causal=causal).transpose(1, 2).flatten(2)
    assert seen.dtype == whole.dtype == torch.bfloat16
    for one, other in zip(*(torch.autograd.grad(out.float().sum(), leaves) for out in (seen, whole)), strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one, other, rtol=0.05, atol=0.05)


LINKS: dict[str, list[dict[str, Any]]] = {
    "gated": [link("speech", "text", every=1), link("text", "speech", every=2)],
    "one clock": [link("speech", "text", every=1, clock="sync"), link("text", "speech", every=1, clock="sync")],
    "joint attention": [
        {"kind": "joint_attention", "from": "speech", "into": "text", "every": 1},
        {"kind": "joint_attention", "from": "text", "into": "speech", "every": 1},
    ],
    "resampler": [{"kind": "resampler", "from": "speech", "into": "text", "config": {"queries": 2, "n_heads": 2}}],
    "q-former": [
        {
            "kind": "resampler",
            "from": "speech",
            "into": "text",
            "every": 1,
            "config": {"queries": 2, "n_heads": 2, "design": "qformer", "output": "cross_attention"},
        }
    ],
}


@pytest.mark.parametrize("name", LINKS)
def test_a_composition_without_tables_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, gradients, and what is generated after a prompt of several segments."""
    towers = {"text": tower(2), "speech": tower(2)}
    spec = CompositionSpec.model_validate({"name": "tiny", "towers": towers, "links": LINKS[name]})
    zipped = zippkit.compile(spec)
    randomise(zipped.model)
    rows = [
        [Segment("speech", [1, 2, 3]), Segment("text", [4, 5, 6]), Segment("speech", [7]), Segment("text", [8])],
        [Segment("text", [4]), Segment("speech", [5])],
    ]
    found = []
    for largest in (1 << 22, 0):
        monkeypatch.setattr(visibility, "LARGEST_TABLE", largest)
        batch = zipped.collate(rows)
        zipped.model.zero_grad()
        total = zipped.loss(zipped.model(batch), batch)["total"]
        total.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad.clone() for p in zipped.model.parameters() if p.grad is not None]
        prompts = [rows[0][:1]] * 2 if name == "one clock" else rows
        outputs = ["speech" if name == "one clock" else "text"]
        found.append(([total, *gradients], generate_batch(zipped, prompts, outputs, 6)))
    (one, generated), (other, generated_by_blocks) = found
    assert generated == generated_by_blocks
    for first, second in zip(one, other, strict=True):
        assert torch.allclose(first, second, rtol=1e-5, atol=1e-6)
