"""The plan: its order, what pruning keeps, what a forward really runs, and what runs without a gradient."""

from __future__ import annotations

from collections import Counter
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from helpers.compositions import link, make, make_spec, tower
from zippkit.batch.batch import Batch, Segment
from zippkit.composition import Composition
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.graph import Graph, build_graph
from zippkit.plan.plan import Op, Plan, Wanted, build_plan

NAMES = ("text", "speech", "image")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """One to three towers, and links that reach down or across, so that every graph can be ordered."""
    n_layers = {name: draw(st.integers(1, 4)) for name in NAMES[: draw(st.integers(1, 3))]}
    links = []
    for i in range(draw(st.integers(0, 4)) if len(n_layers) > 1 else 0):
        source, target = draw(st.permutations(list(n_layers)))[:2]
        into = draw(st.lists(st.integers(1, n_layers[target]), min_size=1, max_size=3))
        sites = [{"from": draw(st.integers(0, min(depth, n_layers[source]))), "into": depth} for depth in into]
        links.append(link(source, target, sites=sites, name=f"link{i}"))
    return build_graph(make_spec({name: tower(n) for name, n in n_layers.items()}, links))


def states(graph: Graph, runs: set[tuple[str, str]], given: set[Any] = frozenset()) -> nx.DiGraph:
    """The design's equations as a graph of values, written without the plan's code.

    ``("u", T, k)`` is a state before fusion, ``("h", T, k, i)`` after the i-th site there, ``("memory", site)`` and
    ``("logits", T)`` are what they say. Sites of pairs outside ``runs`` do nothing; ``given`` memories cost nothing.
    """
    values = nx.DiGraph()
    for name, config in graph.towers.items():
        here: Any = ("u", name, 0)
        values.add_node(here)
        for depth in range(config.n_layers + 1):
            if depth:
                values.add_edge(here, ("u", name, depth))
                here = ("u", name, depth)
            for site in graph.sites:
                if (site.target, site.target_depth) == (name, depth) and (site in given or (name, site.source) in runs):
                    values.add_edge(here, ("h", site))
                    here = ("h", site)
                    if site not in given:
                        values.add_edge(("memory", site), here)
        values.add_edge(here, ("logits", name))
    for site in graph.sites:
        values.add_edge(("u", site.source, site.source_depth), ("memory", site))
    return values


def value_of(op: Op) -> Any:
    if op.site is not None:
        return ("memory" if op.kind == "write" else "h", op.site)
    return ("logits", op.tower) if op.kind == "head" else ("u", op.tower, op.depth)


@settings(max_examples=80)
@given(graph=graphs())
def test_every_op_comes_after_what_it_needs(graph: Graph) -> None:
    plan = build_plan(graph)
    place = {op: i for i, op in enumerate(plan.ops)}
    assert len(place) == len(plan.ops)
    for op, before in plan.needs:
        assert all(place[b] < place[op] for b in before)
    everything = states(graph, {(a, b) for a in NAMES for b in NAMES})
    assert {value_of(op) for op in plan.ops} == set(everything.nodes)
    assert {(value_of(b), value_of(op)) for op, before in plan.needs for b in before} == set(everything.edges)


@settings(max_examples=80)
@given(graph=graphs())
def test_a_tap_is_taken_before_any_link_rewrites_the_state(graph: Graph) -> None:
    written: set[tuple[str, int]] = set()
    for op in build_plan(graph).ops:
        if op.kind == "read":
            written.add((op.tower, op.depth))
        if op.kind == "write":
            assert (op.tower, op.depth) not in written


@settings(max_examples=150)
@given(graph=graphs(), data=st.data())
def test_pruning_keeps_exactly_the_ancestors(graph: Graph, data: st.DataObject) -> None:
    names, sites = list(graph.towers), list(graph.sites)
    heads = data.draw(st.sets(st.sampled_from(names)))
    pairs = [(a, b) for a in names for b in names if a != b]
    sees = data.draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    writes = data.draw(st.sets(st.sampled_from(sites))) if sites else set()
    already = data.draw(st.sets(st.sampled_from(sites))) if sites else set()
    layers = data.draw(st.sets(st.sampled_from(names)))
    pruned = build_plan(graph).prune(Wanted(heads, sees, writes, already, layers))
    values = states(graph, sees, already)
    wanted = [("logits", name) for name in heads] + [("memory", site) for site in writes]
    wanted += [("u", name, graph.towers[name].n_layers) for name in layers]
    expected = set(wanted).union(*(nx.ancestors(values, value) for value in wanted))
    assert [value_of(op) for op in pruned.ops] == [
        value_of(op) for op in build_plan(graph).ops if value_of(op) in expected
    ], "exactly these, in the order of the whole plan"
    kept = values.subgraph(expected)
    assert {(value_of(b), value_of(op)) for op, before in pruned.needs for b in before} == set(kept.edges)


ASR = [Segment("speech", [1, 2, 3, 4], loss=False), Segment("text", [5, 6, 7])]
TTS = [Segment("text", [5, 6, 7], loss=False), Segment("speech", [1, 2, 3, 4])]
BOTH = [Segment("text", [1]), Segment("speech", [2, 3]), Segment("text", [4, 5])]


def zipper(**more: Any) -> Composition:
    """Speech (6 layers) into text (4) from its layers 2 and 4; text into speech at 3 and 6."""
    towers = {"text": tower(4, freeze=True), "speech": tower(6, dim=12, vocab_size=30, freeze=True)}
    for name, keys in more.items():
        towers[name] |= keys
    links = [link("speech", "text", every=2, source_every=2), link("text", "speech", every=3)]
    return make(towers, links)


def test_the_plan_of_a_recognition_batch_reads_as_it_runs() -> None:
    zipped = zipper()
    batch = zipped.collate([ASR])
    plan = zipped.plan.prune(Wanted(set(batch.outputs), batch.sees))
    assert str(plan).splitlines() == [
        "  0  start text",
        "  1  start speech",
        "  2  layer text[1]",
        "  3  layer speech[1]",
        "  4  layer text[2]",
        "  5  layer speech[2]",
        "  6  write speech[2] for text by speech_to_text.0",
        "  7  read  text[2] from speech[2] by speech_to_text.0",
        "  8  layer text[3]",
        "  9  layer speech[3]",
        " 10  layer text[4]",
        " 11  layer speech[4]",
        " 12  write speech[4] for text by speech_to_text.1",
        " 13  read  text[4] from speech[4] by speech_to_text.1",
        " 14  head  text",
    ]


def executed(model: ZippedModel, batch: Batch) -> Counter[str]:
    """Every part of the model that really runs, by the name of its module, counted by hooks."""
    counts: Counter[str] = Counter()
    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_hook(lambda *_, name=name: counts.update([name])))
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


@pytest.mark.parametrize(
    ("example", "n_text", "n_speech", "links", "heads"),
    [
        (ASR, 4, 4, {"speech_to_text": [0, 1]}, {"text"}),
        (TTS, 4, 6, {"text_to_speech": [0, 1]}, {"speech"}),
        (BOTH, 4, 6, {"speech_to_text": [0, 1], "text_to_speech": [0, 1]}, {"text", "speech"}),
        ([Segment("text", [1, 2])], 4, 0, {}, {"text"}),
        ([Segment("speech", [1, 2])], 0, 6, {}, {"speech"}),
        # A link whose target has nothing before it is blind everywhere.
        ([Segment("text", [1, 2]), Segment("speech", [1, 2], loss=False)], 4, 0, {}, {"text"}),
    ],
)
def test_a_forward_runs_the_pruned_plan_and_nothing_else(
    example: list[Segment], n_text: int, n_speech: int, links: dict[str, list[int]], heads: set[str]
) -> None:
    zipped = zipper()
    counts = executed(zipped.model, zipped.collate([example]))
    for name, n_layers, n_run in (("text", 4, n_text), ("speech", 6, n_speech)):
        assert [counts[f"towers.{name}.layers.{i}"] for i in range(n_layers)] == [1] * n_run + [0] * (n_layers - n_run)
        assert counts[f"towers.{name}.embed_tokens"] == (n_run > 0)
        assert counts[f"towers.{name}.norm"] == (name in heads), "the head's norm"
    for name in ("speech_to_text", "text_to_speech"):
        for i in range(2):
            ran = i in links.get(name, [])
            assert counts[f"links.{name}.{i}.key"] == ran, "written once"
            assert counts[f"links.{name}.{i}.query"] == ran, "read once"


def test_frozen_layers_below_the_first_link_build_no_graph() -> None:
    zipped = zipper(speech={"freeze": True})
    model = zipped.model
    needs_gradient: dict[str, bool] = {}
    recorded: dict[str, bool] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, out, name=name: needs_gradient.update({name: _has_graph(out)}))
        module.register_forward_hook(lambda *_, name=name: recorded.update({name: torch.is_grad_enabled()}))
    batch = zipped.collate([ASR])
    total = zipped.loss(model(batch), batch)["total"]
    for i in range(4):
        assert not needs_gradient[f"towers.speech.layers.{i}"], "a frozen source"
        assert not recorded[f"towers.speech.layers.{i}"]
        assert needs_gradient[f"towers.text.layers.{i}"] == (i >= 2), (
            "frozen, but behind the first site from layer 2 on"
        )
    assert needs_gradient["links.speech_to_text.0.key"]
    total.backward()
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None} == {"speech_to_text"}


def _has_graph(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def test_frozen_parameters_alone_would_not_keep_gradients_away() -> None:
    """An input projection that trains makes every layer above it carry a gradient."""
    zipped = zipper(speech={"input_projection": {"depth": 1}})
    plan = zipped.plan
    free = plan.gradient_free(lambda op: op.kind == "start" and op.tower == "speech")
    assert {op for op in plan.ops if op.tower == "speech"} & free == set()
    assert {op.depth for op in free if op.tower == "text" and op.kind == "layer"} == {1, 2}


def gradients(zipped: Composition, batch: Batch, plan: Plan) -> dict[str, torch.Tensor]:
    zipped.model.zero_grad()
    logits = zipped.model.run(plan, batch.towers, batch.multimodal)
    wanted = {name: logits[name] for name in batch.outputs}
    zipped.loss(wanted, batch)["total"].backward()
    return {n: p.grad.clone() for n, p in zipped.model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("examples", [[ASR, ASR[:1] + BOTH[:1]], [TTS], [BOTH, TTS]])
@pytest.mark.parametrize("freeze", [True, False, {"layers.1.*": "train", "[!l]*": "freeze", "layers.[!1].*": "freeze"}])
def test_gradients_equal_those_of_the_whole_plan_with_gradients_everywhere(
    examples: list[list[Segment]], freeze: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped = zipper(speech={"freeze": freeze, "input_projection": {"depth": 2}}, text={"freeze": freeze})
    batch = zipped.collate(examples)
    pruned = zipped.plan.prune(Wanted(set(batch.outputs), batch.sees))
    assert len(pruned.ops) < len(zipped.plan.ops) or len(batch.outputs) == 2
    thrifty = gradients(zipped, batch, pruned)
    monkeypatch.setattr(Plan, "gradient_free", lambda self, trains: frozenset())
    lavish = gradients(zipped, batch, zipped.plan)
    assert thrifty.keys() == lavish.keys()
    assert thrifty
    for name, gradient in thrifty.items():
        assert torch.equal(gradient, lavish[name]), name


def test_matrix_products_are_counted_not_believed() -> None:
    """What torch counts: speech in front of the text costs its layers up to the last tap and the sites of one link."""
    zipped = zipper()
    flops = {}
    for label, example in (("asr", ASR), ("text", ASR[1:])):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            zipped.model(zipped.collate([example]))
        flops[label] = sum(counter.get_flop_counts()["Global"].values())
    n_text, n_speech, d_text, d_speech = 5, 6, 16, 12
    layer = n_speech * (4 * d_speech**2 + 3 * d_speech * 2 * d_speech)
    projection = d_speech * d_text + 2 * d_text**2
    write = n_speech * (projection + 2 * d_text**2)
    read = n_text * (2 * d_text**2 + 2 * d_text * 2 * d_text)
    assert flops["asr"] - flops["text"] == 2 * (4 * layer + 2 * (write + read))
