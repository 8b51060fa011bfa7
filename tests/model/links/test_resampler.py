"""The resampler against loops over its equations, segment by segment; and in whole models."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

import zippkit
from helpers.compositions import make, make_spec, randomise, tower
from helpers.greedy import greedy, sharp
from helpers.link_inputs import feed_forward, linears, norm, tokens, turn
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.errors import SpecError
from zippkit.generation.api import generate_batch
from zippkit.model.layers import mlp
from zippkit.model.links.configs import ResamplerConfig
from zippkit.model.links.resampler import Resampler
from zippkit.plan.graph import build_graph

pytestmark = pytest.mark.slow

D_SOURCE, D_TARGET, N_HEADS, N = 6, 8, 2, 3
HEAD = D_TARGET // N_HEADS

# The first row has two segments of the source, with a place that another link has inserted between them; the second
# row has one, and padding.
SOURCE = tokens(
    torch.tensor([[0, 1, 2, 2, 5, 6], [3, 4, -1, -1, -1, -1]]),
    segment=torch.tensor([[0, 0, 0, 9, 2, 2], [1, 1, -1, -1, -1, -1]]),
    offset=torch.tensor([[0, 1, 2, 0, 0, 1], [0, 1, 0, 0, 0, 0]]),
    inserted=torch.tensor([[False] * 3 + [True] + [False] * 2, [False] * 6]),
)
SEGMENTS = [(0, [0, 1, 2], 2), (0, [4, 5], 6), (1, [0, 1], 4)]
"""Row, its tokens, and the order from which the segment may be seen."""


def make_link(**config: Any) -> Resampler:
    torch.manual_seed(0)
    settings = ResamplerConfig(queries=N, n_heads=N_HEADS, ffn_mult=2, rope_theta=100.0, **config)
    link = Resampler(settings, D_SOURCE, D_TARGET, mlp((D_SOURCE, D_TARGET), "relu")).double()
    randomise(link)
    return link


def states(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def heads(weights: dict[str, Tensor], name: str, query: Tensor, keys: list[tuple[Tensor, int | None]]) -> Tensor:
    """One query's attention over states, each turned by its place if it has one."""
    q, found = weights[f"{name}.query.weight"] @ query, torch.zeros(D_TARGET, dtype=torch.float64)
    for head in (slice(HEAD * h, HEAD * (h + 1)) for h in range(N_HEADS)):
        scores = []
        for x, place in keys:
            k = (weights[f"{name}.key.weight"] @ x)[head]
            scores.append(q[head] @ (k if place is None else turn(k, place, 100.0)) / math.sqrt(HEAD))
        values = torch.stack([(weights[f"{name}.value.weight"] @ x)[head] for x, _ in keys])
        found[head] = torch.softmax(torch.stack(scores), 0) @ values
    return weights[f"{name}.output.weight"] @ found


def naive(link: Resampler, source: Tensor) -> Tensor:
    """(n, D) latents of one segment."""
    weights, config = dict(link.named_parameters()), link.config
    latents = list(weights["queries"])
    normed = [norm(x, weights["source_norm.weight"]) if config.norm_source else x for x in source]
    there = [
        (linears(weights, "projection", x), i if config.positions == "keys" else None) for i, x in enumerate(normed)
    ]
    for layer in (f"layers.{i}" for i in range(config.depth)):
        if config.design == "perceiver":
            before = [norm(x, weights[f"{layer}.attention_norm.weight"]) for x in latents]
            keys = [*there, *((x, None) for x in before)]
            latents = [x + heads(weights, f"{layer}.attention", q, keys) for x, q in zip(latents, before, strict=True)]
        else:
            before = [norm(x, weights[f"{layer}.self_attention_norm.weight"]) for x in latents]
            own = [(x, None) for x in before]
            latents = [
                x + heads(weights, f"{layer}.self_attention", q, own) for x, q in zip(latents, before, strict=True)
            ]
            before = [norm(x, weights[f"{layer}.cross_attention_norm.weight"]) for x in latents]
            latents = [
                x + heads(weights, f"{layer}.cross_attention", q, there) for x, q in zip(latents, before, strict=True)
            ]
        latents = [
            x + feed_forward(weights, f"{layer}.feed_forward", norm(x, weights[f"{layer}.feed_forward_norm.weight"]))
            for x in latents
        ]
    return torch.stack([norm(x, weights["norm.weight"]) for x in latents])


@pytest.mark.parametrize("design", ["perceiver", "qformer"])
@pytest.mark.parametrize("positions", ["keys", "none"])
@pytest.mark.parametrize("norm_source", [True, False])
@torch.no_grad()
def test_the_equations(design: str, positions: str, norm_source: bool) -> None:
    link = make_link(design=design, positions=positions, norm_source=norm_source)
    source = states(6, D_SOURCE)
    memory = link.write(source, SOURCE)
    for row, at, order in SEGMENTS:
        (where,) = (memory.order[row] == order).nonzero(as_tuple=True)
        assert len(where) == N
        latents = memory.tensors[0][row, where]
        assert (latents - naive(link, source[row, at])).abs().max() < 1e-12
        assert memory.tensors[1][row, where].tolist() == [int(SOURCE.segment[row, at[0]])] * N
    assert int((memory.order >= 0).sum()) == len(SEGMENTS) * N


@pytest.mark.parametrize("design", ["perceiver", "qformer"])
@torch.no_grad()
def test_latents_take_the_places_of_their_segment(design: str) -> None:
    link = make_link(design=design)
    source, target = states(6, D_SOURCE), states(8, D_TARGET)
    order = torch.tensor([[2, 2, 2, 3, 4, 6, 6, 6], [0, 4, 4, 4, 5, -1, -1, -1]])
    inserted = torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0, 0]]).bool()
    segment = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, -1, -1, -1]])
    offset = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2], [0, 0, 1, 2, 0, 0, 0, 0]])
    places = tokens(order, inserted=inserted, segment=segment, offset=offset)
    expected = target.clone()
    for row, at, begin in ((0, [0, 1, 2], 0), (0, [4, 5], 5), (1, [0, 1], 1)):
        expected[row, begin : begin + N] += naive(link, source[row, at])
    found = link.read(target, places, link.write(source, SOURCE))
    assert (found - expected).abs().max() < 1e-12
    assert torch.equal(found[~inserted], target[~inserted])


@torch.no_grad()
def test_cross_attention_reads_latents_as_it_reads_tokens() -> None:
    """Two target tokens of the first row see one segment, two see both; the reader itself is tested as a link."""
    link = make_link(output="cross_attention")
    source, target = states(6, D_SOURCE), states(5, D_TARGET)
    asking = tokens(torch.tensor([[1, 3, 4, 7, 8], [0, 1, 5, -1, -1]]))
    found = link.read(target, asking, link.write(source, SOURCE))
    for row, t, segments in ((0, 1, 1), (0, 2, 1), (0, 3, 2), (0, 4, 2), (1, 2, 1)):
        seen = torch.cat([naive(link, source[r, at]) for r, at, _ in SEGMENTS if r == row][:segments])[None]
        memory = link.reader.write(seen, tokens(torch.zeros(1, len(seen[0]), dtype=torch.long)))
        alone = link.reader.read(target[row, t].view(1, 1, -1), tokens(torch.ones(1, 1, dtype=torch.long)), memory)
        assert (found[row, t] - alone[0, 0]).abs().max() < 1e-12
    blind = torch.tensor([[True] + [False] * 4, [True, True, False, True, True]])
    assert torch.equal(found[blind], target[blind])
    assert not torch.isclose(found, target)[~blind].all(dim=-1).any()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"placement": "before"}, "`placement` is of `output: cross_attention`"),
        ({"design": "qformer", "queries": 1}, "a single query has no other to attend to; expected `design: perceiver`"),
    ],
)
def test_settings_that_contradict_each_other(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        ResamplerConfig(**config)


def resampler(source: str, target: str, **more: Any) -> dict[str, Any]:
    config = {"queries": 3, "n_heads": 2, "ffn_mult": 2} | more.pop("config", {})
    return {"kind": "resampler", "from": source, "into": target, "config": config, **more}


def test_shapes_are_checked_before_any_weight_is_loaded() -> None:
    spec = make_spec({"a": tower(), "b": tower()}, [resampler("a", "b", config={"n_heads": 5})])
    with pytest.raises(SpecError, match=r"links\[0\].config: n_heads 5 does not divide the target's width 16"):
        build_graph(spec)
    with pytest.raises(SpecError, match="reads whole segments, so its towers cannot advance together"):
        build_graph(make_spec({"a": tower(), "b": tower()}, [resampler("a", "b", clock="sync")]))


LINKS: dict[str, list[dict[str, Any]]] = {
    "prefix": [resampler("speech", "text")],
    "flamingo": [resampler("speech", "text", every=1, config={"output": "cross_attention", "placement": "before"})],
    "both ways": [
        resampler("speech", "text", sites=[{"from": 1, "into": 0}], config={"design": "qformer"}),
        resampler("text", "speech", sites=[{"from": 1, "into": 3}], config={"output": "cross_attention", "queries": 2}),
    ],
}


@cache
def composition(links: str) -> Composition:
    towers = {"text": tower(2, 8, 8, {"tied": False}), "speech": tower(3, 12, 7, {"tied": False})}
    return sharp(make(towers, LINKS[links]))


@pytest.mark.parametrize("links", LINKS)
def test_certificates(links: str) -> None:
    zipped = zippkit.compile(composition(links).spec)
    report = zippkit.verify(zipped, only=["C1", "C2", "C7"])
    assert report.passed, str(report)


SEGMENT = st.builds(Segment, st.sampled_from(["text", "speech"]), st.lists(st.integers(0, 4), max_size=4))
ROWS = st.lists(st.lists(SEGMENT, max_size=3), min_size=1, max_size=3)


@pytest.mark.parametrize("links", LINKS)
@settings(max_examples=20, deadline=None)
@given(rows=ROWS, wanted=st.lists(st.sampled_from(["text", "speech"]), min_size=1, max_size=3))
def test_cached_generation_is_the_whole_forward(links: str, rows: list[list[Segment]], wanted: list[str]) -> None:
    zipped = composition(links)
    assert generate_batch(zipped, rows, wanted, 4) == [greedy(zipped, row, wanted, 4) for row in rows]
