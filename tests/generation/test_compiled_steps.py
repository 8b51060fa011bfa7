"""Compiled steps: one graph for many lengths, and the same logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from helpers.compositions import link, make, tower
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.generation.api import stream
from zippkit.spec.sampling import Sampling


def two() -> Composition:
    """Two towers that read each other, by both kinds of link that have twins."""
    towers = {"text": tower(2, 16), "speech": tower(2, 24, config={"n_kv_heads": 1, "tied": False})}
    plain = {"kind": "cross_attention", "config": {"n_heads": 2}}
    return make(towers, [link("speech", "text", every=1), link("text", "speech", every=2, **plain)])


def logits(
    zipped: Composition, lengths: tuple[int, int], outputs: Sequence[str], **ways: Any
) -> tuple[Any, list[torch.Tensor]]:
    """What rows of two lengths begin to generate, one of which sees nothing at first, and the logits of every step."""
    seen: list[torch.Tensor] = []

    def watch(name: str, places: dict[int, tuple[int, int]], found: torch.Tensor) -> None:
        seen.extend(found[row].double() for row in places)

    prompts = [[Segment("speech", [3] * lengths[0])], [Segment("text", [5] * lengths[1])]]
    generation = stream(zipped, prompts, outputs, 99, Sampling(temperature=1.0), watch=watch, **ways)
    for _ in zip(range(24), generation, strict=False):
        pass
    return generation.segments, seen


def demand_equal(zipped: Composition, lengths: tuple[int, int], outputs: Sequence[str] = ("text", "speech")) -> None:
    made = [logits(zipped, lengths, outputs, compile=compile) for compile in (True, False)]
    (tokens, found), (own_tokens, expected) = made
    assert tokens == own_tokens
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4 * float(other.abs().max()))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many operations each graph that is compiled has; graphs are traced, and run as they are."""
    made: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        made.append(len(graph.graph.nodes))
        return graph

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode=None, **how: compile(function, backend=backend, **how))
    torch._dynamo.reset()
    return made


def test_a_graph_serves_other_lengths_and_other_generations(graphs: list[int]) -> None:
    zipped = two()
    demand_equal(zipped, (4, 3))
    n_graphs = len(graphs)
    assert 0 < n_graphs <= 6
    demand_equal(zipped, (9, 7))
    assert len(graphs) == n_graphs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_compiled_code_computes_the_same() -> None:
    torch._dynamo.reset()
    towers = {"text": tower(1, 16), "speech": tower(1, 16)}
    demand_equal(make(towers, [link("speech", "text", every=1)]), (4, 3), outputs=["text"])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_compute_the_same() -> None:
    zipped = two()
    zipped.model.cuda()
    demand_equal(zipped, (4, 3))
    demand_equal(zipped, (9, 7))
