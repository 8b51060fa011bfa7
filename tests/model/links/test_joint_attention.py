"""Joint attention in whole models, against loops over tokens with one softmax over the towers together."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import zippkit
from helpers.compositions import make, make_spec, tower
from helpers.greedy import greedy, sharp
from helpers.link_inputs import tokens, turn
from zippkit.batch.batch import Segment, TowerBatch
from zippkit.composition import Composition
from zippkit.errors import DataError, SpecError
from zippkit.generation.api import generate_batch
from zippkit.model.layers import attend
from zippkit.model.links.base import Memory
from zippkit.model.links.joint_attention import attend_jointly

pytestmark = pytest.mark.slow

THETA = 100.0


def joint(source: str, target: str, /, **more: Any) -> dict[str, Any]:
    return {"kind": "joint_attention", "from": source, "into": target, **more}


def small(n_layers: int, dim: int, **config: Any) -> dict[str, Any]:
    """Key heads of width 4, as many as the other tower has; queries as the tower likes."""
    return tower(n_layers, dim, 8, {"tied": False, "head_dim": 4, "n_kv_heads": 2, "rope_theta": THETA} | config)


TWO = {"text": small(2, 8, n_heads=2), "speech": small(3, 12, n_heads=4)}
"""Other widths, depths and query heads; the same key heads."""
COMPOSITIONS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "mixture of transformers": (
        TWO,
        [joint("speech", "text", every=1), joint("text", "speech", sites=[{"from": d, "into": d} for d in (1, 2)])],
    ),
    "one way": (TWO, [joint("speech", "text", every=1)]),
    "one layer": (TWO, [joint("speech", "text", every=2), joint("text", "speech", sites=[{"from": 1, "into": 1}])]),
    "three towers": (
        {name: small(2, 8) for name in ("text", "speech", "image")},
        [joint(a, b, every=1) for a in ("text", "speech", "image") for b in ("text", "speech", "image") if a != b],
    ),
}


@cache
def composition(name: str) -> Composition:
    return sharp(make(*COMPOSITIONS[name]))


class Reference:
    """One row, token by token: every token is [tower, state], in the order of the whole sequence."""

    def __init__(self, zipped: Composition, row: list[Segment]) -> None:
        self.zipped = zipped
        self.weights = dict(zipped.model.named_parameters())
        self.joined = {(s.source, s.target, s.target_depth) for s in zipped.graph.sites}
        self.names, ids = [], []
        for segment in row:
            frame = zipped.graph.towers[segment.tower].frame
            assert frame is not None
            ids += [frame.begin, *segment.tokens, frame.end]
            self.names += [segment.tower] * (len(segment.tokens) + 2)
        self.states = [self.of(name, "embed_tokens.weight")[i] for name, i in zip(self.names, ids, strict=True)]
        for depth in range(1, max(config.n_layers for config in zipped.graph.towers.values()) + 1):
            self.layer(depth)

    def of(self, name: str, weight: str) -> Tensor:
        return self.weights[f"towers.{name}.{weight}"]

    def layer(self, depth: int) -> None:
        deep = {name: config for name, config in self.zipped.graph.towers.items() if config.n_layers >= depth}
        projected = [
            self.projected(name, depth, state, order) if name in deep else None
            for order, (name, state) in enumerate(zip(self.names, self.states, strict=True))
        ]
        new = list(self.states)
        for order, name in enumerate(self.names):
            if name in deep:
                seen = [
                    i for i in range(order + 1) if self.names[i] == name or (self.names[i], name, depth) in self.joined
                ]
                new[order] = self.closed(
                    name, depth, self.states[order], projected[order], [projected[i] for i in seen]
                )
        self.states = new

    def projected(self, name: str, depth: int, state: Tensor, order: int) -> Any:
        base = f"layers.{depth - 1}"
        inner = norm_with(state, self.of(name, f"{base}.input_layernorm.weight"))
        q, k, v = (self.of(name, f"{base}.self_attn.{part}_proj.weight") @ inner for part in "qkv")
        return [turn(x, order, THETA) for x in q.split(4)], [turn(x, order, THETA) for x in k.split(4)], v.split(4)

    def closed(self, name: str, depth: int, state: Tensor, own: Any, seen: Any) -> Tensor:
        base, found = f"layers.{depth - 1}", []
        group = len(own[0]) // len(own[1])
        for head, query in enumerate(own[0]):
            scores = torch.stack([query @ keys[head // group] / math.sqrt(4) for _, keys, _ in seen])
            found.append(torch.softmax(scores, 0) @ torch.stack([values[head // group] for _, _, values in seen]))
        state = state + self.of(name, f"{base}.self_attn.o_proj.weight") @ torch.cat(found)
        inner = norm_with(state, self.of(name, f"{base}.post_attention_layernorm.weight"))
        gate, up = (self.of(name, f"{base}.mlp.{part}_proj.weight") @ inner for part in ("gate", "up"))
        return state + self.of(name, f"{base}.mlp.down_proj.weight") @ (F.silu(gate) * up)

    def logits(self, name: str) -> Tensor:
        states = [state for state, each in zip(self.states, self.names, strict=True) if each == name]
        finished = [norm_with(state, self.of(name, "norm.weight")) for state in states]
        return torch.stack([self.of(name, "lm_head.weight") @ state for state in finished])


def norm_with(x: Tensor, weight: Tensor) -> Tensor:
    """The decoder's own epsilon."""
    return x / (x.square().mean() + 1e-5).sqrt() * weight


ROWS = [
    [Segment("speech", [1, 2, 3]), Segment("text", [4, 0])],
    [Segment("text", [1]), Segment("speech", [2, 2]), Segment("text", [3, 4]), Segment("speech", [])],
    [Segment("text", [5, 1, 1, 0, 2])],
    [Segment("speech", [0]), Segment("speech", [1])],
]


@pytest.mark.parametrize("name", COMPOSITIONS)
@torch.no_grad()
def test_one_softmax_over_all_earlier_tokens(name: str) -> None:
    zipped = composition(name)
    rows = [*ROWS, [Segment("image", [1, 3]), *ROWS[0]]] if name == "three towers" else ROWS
    batch = zipped.collate(rows)
    logits = zipped.model(batch)
    for i, row in enumerate(rows):
        reference = Reference(zipped, row)
        for each in {segment.tower for segment in row}:
            real = batch.towers[each].order[i] >= 0
            assert (logits[each][i, real] - reference.logits(each)).abs().max() < 1e-10


def test_nothing_is_added_but_what_the_towers_have() -> None:
    zipped = composition("mixture of transformers")
    assert not [key for key in zipped.model.state_dict() if key.startswith("links.")]
    assert sum(op.kind == "project" for op in zipped.plan.ops) == 4, "layers 1 and 2 of both"


@settings(max_examples=30, deadline=None)
@given(
    heads=st.sampled_from([(2, 2), (4, 2), (4, 1), (3, 3)]),
    n=st.integers(1, 5),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_blind_positions_are_the_plain_attention_to_the_last_bit(
    heads: tuple[int, int], n: int, lengths: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator)

    queries, own = random(heads[0], n, 4), (random(heads[1], n, 4), random(heads[1], n, 4))
    order = torch.randint(-1, 6, (2, n), generator=generator).sort(dim=1).values
    asking = replace(TowerBatch.alone(order), order=order)
    others = [
        Memory(torch.randint(-1, 9, (2, m), generator=generator), (random(m, heads[1], 4), random(m, heads[1], 4)))
        for m in lengths
    ]
    found, alone = attend_jointly(queries, own, None, asking, others), attend(queries, *own, None)
    sees = torch.stack([((m.order[:, None] >= 0) & (m.order[:, None] < order[:, :, None])).any(-1) for m in others])
    sees = sees.any(dim=0)
    assert torch.equal(found[~sees], alone[~sees])
    assert not torch.isclose(found, alone)[sees].all(dim=-1).any()
    assert torch.equal(attend_jointly(queries, own, None, asking, []), alone)


def test_the_link_itself_hands_on_keys_and_values() -> None:
    zipped = composition("one way")
    (site, *_) = zipped.graph.sites
    module, states = zipped.model.link(site), torch.randn(1, 3, 2, 2, 4)
    memory = module.write(states, tokens(torch.tensor([[4, 5, -1]])))
    assert memory.order.tolist() == [[4, 5, -1]]
    assert torch.equal(torch.stack(memory.tensors, dim=2), states)
    target = torch.randn(1, 2, 8)
    assert torch.equal(module.read(target, tokens(torch.tensor([[6, 7]])), memory), target)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_certificates(name: str) -> None:
    report = zippkit.verify(zippkit.compile(composition(name).spec), only=["C1", "C2", "C7", "C9"])
    assert report.passed, str(report)


SEGMENT = st.builds(Segment, st.sampled_from(["text", "speech"]), st.lists(st.integers(0, 4), max_size=4))


@pytest.mark.parametrize("name", COMPOSITIONS)
@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.lists(SEGMENT, max_size=3), min_size=1, max_size=3),
    wanted=st.lists(st.sampled_from(["text", "speech"]), min_size=1, max_size=3),
)
def test_cached_generation_is_the_whole_forward(name: str, rows: list[list[Segment]], wanted: list[str]) -> None:
    zipped = composition(name)
    assert generate_batch(zipped, rows, wanted, 4) == [greedy(zipped, row, wanted, 4) for row in rows]


@pytest.mark.parametrize(
    ("towers", "given", "told"),
    [
        (
            {"text": small(2, 8), "speech": small(2, 8, n_kv_heads=1)},
            {"every": 1},
            "need the same key heads, got 1 of width 4 in 'speech' and 2 of width 4 in 'text'",
        ),
        ({"text": small(2, 8), "speech": small(2, 8, head_dim=8)}, {"every": 1}, "need the same key heads"),
        ({"text": small(3, 8), "speech": small(2, 8)}, {"every": 1}, "'speech' has only 2 layers; expected `sites`"),
        (TWO, {"sites": [{"from": 1, "into": 2}]}, "attention is shared at one depth; expected 2"),
        (TWO, {"every": 1, "projection": {"depth": 1}}, "projects nothing; remove `projection`"),
    ],
)
def test_what_does_not_fit_is_told_before_any_weight_is_loaded(
    towers: dict[str, Any], given: dict[str, Any], told: str
) -> None:
    with pytest.raises(SpecError) as error:
        zippkit.compile(make_spec(towers, [joint("speech", "text", **given)]))
    assert told in str(error.value)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.lists(SEGMENT, max_size=2), min_size=1, max_size=3),
    wanted=st.lists(st.sampled_from(["text", "speech"]), min_size=1, max_size=1),
)
def test_a_tower_s_longest_sequence_counts_the_tokens_of_all(rows: list[list[Segment]], wanted: list[str]) -> None:
    zipped = short()
    used = max(sum(len(segment.tokens) + 2 for segment in row) for row in rows)
    if used + 2 > 12:
        with pytest.raises(DataError, match="takes at most 12"):
            generate_batch(zipped, rows, wanted, 20)
        return
    for row, new in zip(rows, generate_batch(zipped, rows, wanted, 20), strict=True):
        zipped.collate([[*row, *new]])


@cache
def short() -> Composition:
    towers = {name: small(2, 8, max_len=12) for name in ("text", "speech")}
    return sharp(make(towers, [joint("text", "speech", every=1), joint("speech", "text", every=1)]))
