"""Where a spec's links act, by worked examples; which graphs cannot be ordered, and how the cycle is told."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.compositions import SPEC, link, make_spec, tower
from zippkit.errors import SpecError
from zippkit.loading import check_spec
from zippkit.plan.graph import build_graph
from zippkit.plan.parts import parts
from zippkit.plan.plan import build_plan


def sites(spec_towers: dict[str, Any], *links: dict[str, Any]) -> list[tuple[int, int]]:
    """(source depth, target depth) of every site."""
    graph = build_graph(make_spec(spec_towers, list(links)))
    return [(site.source_depth, site.target_depth) for site in graph.sites]


def pair(n_source: int, n_target: int) -> dict[str, Any]:
    return {"speech": tower(n_source), "text": tower(n_target)}


@pytest.mark.parametrize(
    ("n_source", "n_target", "keys", "expected"),
    [
        # The design's example: the c-th site pairs the c-th of each.
        (12, 12, {"every": 3, "source_every": 3}, [(3, 3), (6, 6), (9, 9), (12, 12)]),
        (6, 6, {"every": 2, "source_every": 1}, [(1, 2), (2, 4), (3, 6)]),
        (7, 4, {"every": 2, "source_every": 3}, [(3, 2), (6, 4)]),
        # No site after the last whole interval.
        (7, 7, {"every": 3, "source_every": 2}, [(2, 3), (4, 6)]),
        (12, 12, {"every": 12}, [(12, 12)]),
        # Left out, the source depth is the same relative depth, rounded half up ...
        (12, 6, {"every": 3}, [(6, 3), (12, 6)]),
        (6, 4, {"every": 2}, [(3, 2), (6, 4)]),
        (4, 6, {"every": 1}, [(1, 1), (1, 2), (2, 3), (3, 4), (3, 5), (4, 6)]),
        (2, 4, {"every": 1}, [(1, 1), (1, 2), (2, 3), (2, 4)]),
        (5, 2, {"every": 1}, [(3, 1), (5, 2)]),
        # ... and never the bare embedding.
        (1, 6, {"every": 2}, [(1, 2), (1, 4), (1, 6)]),
        # Flamingo reads the finished source at every site.
        (5, 6, {"every": 2, "source": "final"}, [(5, 2), (5, 4), (5, 6)]),
        (5, 6, {"every": 2, "source": "embedding"}, [(0, 2), (0, 4), (0, 6)]),
        # Explicit sites may read the embedding, and may repeat a depth.
        (5, 6, {"sites": [{"from": 0, "into": 6}, {"from": 5, "into": 1}]}, [(0, 6), (5, 1)]),
        (5, 6, {"sites": [{"from": 2, "into": 3}, {"from": 4, "into": 3}]}, [(2, 3), (4, 3)]),
    ],
)
def test_worked_examples(n_source: int, n_target: int, keys: dict[str, Any], expected: list[tuple[int, int]]) -> None:
    assert sites(pair(n_source, n_target), link("speech", "text", **keys)) == expected


@settings(max_examples=60)
@given(n_source=st.integers(1, 12), n_target=st.integers(1, 12), every=st.integers(1, 12))
def test_the_same_relative_depth(n_source: int, n_target: int, every: int) -> None:
    every = min(every, n_target)
    found = sites(pair(n_source, n_target), link("speech", "text", every=every))
    assert [into for _, into in found] == [i for i in range(1, n_target + 1) if i % every == 0]
    for depth, into in found:
        assert 1 <= depth <= n_source
        assert abs(depth - into * n_source / n_target) <= 0.5 or depth == 1
    assert found == sorted(found), "a deeper site never reads a shallower state"
    if n_target % every == 0:
        assert found[-1] == (n_source, n_target), "the finished target reads the finished source"


def test_sites_stand_in_spec_order_with_names() -> None:
    towers = {name: tower(2) for name in ("text", "speech", "image")}
    links = [
        link("image", "text", every=2),
        link("speech", "text", every=1, name="ears"),
        link("text", "image", every=2),
    ]
    graph = build_graph(make_spec(towers, links))
    assert [str(site) for site in graph.sites] == [
        "image_to_text.0: image[2] -> text[2]",
        "ears.0: speech[1] -> text[1]",
        "ears.1: speech[2] -> text[2]",
        "text_to_image.0: text[2] -> image[2]",
    ]
    assert list(graph.towers) == ["text", "speech", "image"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"every": 5}, "links[0].every: got 5, but 'text' has only 4 layers"),
        (
            {"every": 1, "source_every": 2},
            "links[0].source_every: 'text' has 4 sites, but 'speech' (6 layers, every 2) has only 3 to read; "
            "expected at most 1",
        ),
        ({"sites": [{"from": 7, "into": 1}]}, "links[0].sites[0].from: depth 7 of 'speech', which has 6 layers"),
        ({"sites": [{"from": 1, "into": 2}, {"from": 1, "into": 5}]}, "links[0].sites[1].into: depth 5 of 'text'"),
    ],
)
def test_depths_that_are_not_there(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_graph(make_spec(pair(6, 4), [link("speech", "text", **keys)]))
    assert f"tiny: {told}" in str(caught.value)


def at(source: str, source_depth: int, target: str, target_depth: int, **more: Any) -> dict[str, Any]:
    return link(source, target, sites=[{"from": source_depth, "into": target_depth}], **more)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_towers_may_read_each_other_at_one_depth(depth: int) -> None:
    """A tap is the state before fusion."""
    links = [at("speech", depth, "text", depth), at("text", depth, "speech", depth)]
    assert sites(pair(4, 4), *links) == [(depth, depth)] * 2


@pytest.mark.parametrize(
    ("links", "cycle"),
    [
        # text[3] needs what was written into text after its layer 2, from speech[4], which needs text[3].
        ([at("speech", 4, "text", 2), at("text", 3, "speech", 3)], "text[3] -> speech[4] -> text[3]"),
        # Steps inside one tower are left out: only what another tower reads is told.
        ([at("speech", 4, "text", 1), at("text", 4, "speech", 2)], "text[4] -> speech[4] -> text[4]"),
        (
            [at("text", 2, "image", 1), at("image", 3, "speech", 2), at("speech", 4, "text", 1)],
            "text[2] -> image[3] -> speech[4] -> text[2]",
        ),
        (
            [link("speech", "text", every=1, source="final"), link("text", "speech", every=2)],
            "text[2] -> speech[4] -> text[2]",
        ),
    ],
)
def test_a_cycle_is_told(links: list[dict[str, Any]], cycle: str) -> None:
    spec = make_spec({"text": tower(4), "speech": tower(4), "image": tower(4)}, links)
    with pytest.raises(SpecError) as caught:
        build_graph(spec)
    (problem,) = caught.value.problems
    told = problem.message.removeprefix("the links cannot be ordered, each of these needs the one before it: ")
    assert problem.key == "links"
    steps = told.split(" -> ")
    assert steps[0] == steps[-1]
    expected = cycle.split(" -> ")
    turns = [expected[i:-1] + expected[: i + 1] for i in range(len(expected) - 1)]
    assert steps in turns, f"{told}, expected a turn of {cycle}"


def test_a_cycle_through_shared_attention_is_told() -> None:
    """Layer 2 of text takes its keys from speech as links have left it after layer 1."""
    towers = {"text": tower(3), "speech": tower(3)}
    joint = {"kind": "joint_attention", "from": "speech", "into": "text", "sites": [{"from": 2, "into": 2}]}
    for source, target in ((1, 1), (2, 2), (3, 2)):
        assert build_graph(make_spec(towers, [joint, at("text", source, "speech", target)])).sites
    for source in (2, 3):
        with pytest.raises(SpecError, match=r"cannot be ordered.*: (text|speech)\[\d\] -> (text|speech)\[\d\] -> "):
            build_graph(make_spec(towers, [joint, at("text", source, "speech", 1)]))


NAMES = ("text", "speech", "image")
N_LAYERS = {"text": 3, "speech": 4, "image": 2}


@st.composite
def random_links(draw: st.DrawFn) -> list[dict[str, Any]]:
    links = []
    for i in range(draw(st.integers(1, 5))):
        source, target = draw(st.permutations(NAMES))[:2]
        depths = draw(st.integers(0, N_LAYERS[source])), draw(st.integers(1, N_LAYERS[target]))
        links.append(at(source, depths[0], target, depths[1], name=f"link{i}"))
    return links


def can_run(links: list[dict[str, Any]]) -> bool:
    """Whether every state is reached by running, again and again, each layer whose inputs are there."""
    depth = dict.fromkeys(NAMES, 0)
    while True:
        before = dict(depth)
        for name in NAMES:
            reads = [ln for ln in links if ln["into"] == name and ln["sites"][0]["into"] == depth[name]]
            fused = all(depth[ln["from"]] >= ln["sites"][0]["from"] for ln in reads)
            if fused and depth[name] <= N_LAYERS[name]:
                depth[name] += 1
        if depth == before:
            return all(depth[name] > N_LAYERS[name] for name in NAMES)


@settings(max_examples=150)
@given(links=random_links())
def test_a_graph_is_refused_exactly_if_it_cannot_run(links: list[dict[str, Any]]) -> None:
    spec = make_spec({name: tower(n) for name, n in N_LAYERS.items()}, links)
    try:
        build_graph(spec)
    except SpecError as error:
        assert "cannot be ordered" in str(error)
        assert not can_run(links)
    else:
        assert can_run(links)


def test_a_spec_is_placed_once_and_a_copy_anew() -> None:
    spec, _ = check_spec(yaml.safe_load(SPEC))
    assert spec is not None
    assert build_graph(spec) is build_graph(spec)
    text = spec.towers["text"]
    deeper = text.model_copy(update={"config": text.config | {"n_layers": 6}})
    assert (text.settings.n_layers, deeper.settings.n_layers) == (4, 6)
    copy = spec.model_copy(update={"towers": spec.towers | {"text": deeper}})
    assert build_graph(copy).towers["text"].n_layers == 6
    assert build_graph(spec).towers["text"].n_layers == 4
    assert spec == check_spec(yaml.safe_load(SPEC))[0], "what was worked out is no part of what it says"


def n_calls(n_towers: int) -> int:
    """Function calls that checking, placing and planning take, with five links for each tower."""
    links = [link(f"t{i}", f"t{(i + step) % n_towers}", every=1) for i in range(n_towers) for step in range(1, 6)]
    data = {"name": "large", "towers": {f"t{i}": tower(2) for i in range(n_towers)}, "links": links}
    calls: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: calls.update([event]))
    try:
        spec, complaints = check_spec(data)
        assert spec is not None and not complaints
        build_plan(build_graph(spec))
        parts(spec)
    finally:
        sys.setprofile(None)
    return calls["call"] + calls["c_call"]


def test_the_work_grows_as_the_spec_does() -> None:
    n_calls(8)  # What is imported and cached once.
    assert n_calls(32) < 2.5 * n_calls(16)
