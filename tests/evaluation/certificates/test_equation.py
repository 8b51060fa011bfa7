"""C11: what is computed is the design's equation; a fault in where, what or in which order links read is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import zippkit
from helpers.compositions import link, make, randomise, tower
from helpers.random_specs import rows, specs
from zippkit.batch.batch import TowerBatch
from zippkit.batch.interleave import Interleaving
from zippkit.composition import Composition
from zippkit.evaluation.certificates import verify
from zippkit.evaluation.certificates.equation import compare
from zippkit.loading import check_spec
from zippkit.model.links import attending, gated_cross_attention, prefix
from zippkit.plan import graph as graph_module
from zippkit.plan.plan import Op, Plan

pytestmark = pytest.mark.slow

Plant = Callable[[pytest.MonkeyPatch, Composition], None]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(data=st.data(), described=specs())
def test_random_compositions_compute_the_equation(data: st.DataObject, described: dict[str, Any]) -> None:
    spec, wrong = check_spec(described)
    assume(spec is not None and not wrong)
    zipped = zippkit.compile(spec)
    randomise(zipped.model)
    zipped.model.double().eval()
    for _ in range(2):
        row = data.draw(rows(zipped.graph))
        several = len({segment.tower for segment in row}) > 1
        compare(zipped, row, several or data.draw(st.booleans()))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(data=st.data(), described=specs())
def test_rows_beside_each_other_are_what_they_are_alone(data: st.DataObject, described: dict[str, Any]) -> None:
    """One modality twice beside a longer row, rows that lack a tower, padding."""
    spec, wrong = check_spec(described)
    assume(spec is not None and not wrong)
    zipped = zippkit.compile(spec)
    randomise(zipped.model)
    zipped.model.double().eval()
    examples = data.draw(st.lists(rows(zipped.graph), min_size=2, max_size=3))
    together = zipped.collate(examples, multiple=data.draw(st.sampled_from([1, 5])))
    with torch.no_grad():
        found = zipped.model(together)
        for i, row in enumerate(examples):
            for name, logits in zipped.model(zipped.collate([row])).items():
                assert torch.allclose(found[name][i, : logits.shape[1]], logits[0], rtol=0, atol=1e-9), name


BOTH = {"text": tower(3, 8), "speech": tower(4, 8, 30)}
ATTENDS: dict[str, dict[str, Any]] = {
    "both ways": {"towers": BOTH, "links": [link("speech", "text", every=1), link("text", "speech", every=2)]},
    "two into one site": {
        "towers": BOTH,
        "links": [
            link("speech", "text", sites=[{"from": 4, "into": 2}], name="z"),
            link("speech", "text", sites=[{"from": 1, "into": 2}], name="a"),
        ],
    },
    "tap and site at one depth": {
        "towers": BOTH,
        "links": [
            link("text", "speech", sites=[{"from": 1, "into": 2}]),
            link("speech", "text", sites=[{"from": 2, "into": 3}]),
        ],
    },
    "source_every": {"towers": BOTH, "links": [link("speech", "text", every=1, source_every=1)]},
    "source final": {"towers": BOTH, "links": [link("speech", "text", every=1, source="final")]},
    "source embedding": {"towers": BOTH, "links": [link("speech", "text", every=1, source="embedding")]},
    "pace": {
        "towers": BOTH,
        "links": [link("speech", "text", every=1, config={"n_heads": 2, "ffn_mult": 2, "pace": 0.5})],
    },
    "keys": {
        "towers": BOTH,
        "links": [link("speech", "text", every=1, config={"n_heads": 2, "ffn_mult": 2, "positions": "keys"})],
    },
    "cross_attention": {
        "towers": BOTH,
        "links": [
            link("speech", "text", kind="cross_attention", every=1, config={"n_heads": 2, "placement": "before"})
        ],
    },
    "prefix": {
        "towers": BOTH | {"image": tower(1, 8)},
        "links": [
            {"kind": "prefix", "from": "speech", "into": "text", "config": {"stack": 2}},
            link("text", "image", every=1),
        ],
    },
    "resampler": {
        "towers": BOTH,
        "links": [{"kind": "resampler", "from": "speech", "into": "text", "config": {"queries": 2, "n_heads": 2}}],
    },
    "clock": {"towers": BOTH, "links": [link("speech", "text", every=1, clock="sync")]},
    "input projections": {
        "towers": {name: each | {"input_projection": {"residual": False}} for name, each in BOTH.items()},
        "links": [link("speech", "text", every=1)],
    },
    "shared projection": {
        "towers": BOTH,
        "links": [
            link(a, b, every=2, projection={"share": "directions"}) for a, b in (("speech", "text"), ("text", "speech"))
        ],
    },
    "joint": {
        "towers": {"text": tower(3, 8), "speech": tower(3, 8, 30)},
        "links": [
            {"kind": "joint_attention", "from": a, "into": b, "every": 1}
            for a, b in (("speech", "text"), ("text", "speech"))
        ],
    },
    "added vocabulary": {"towers": {"text": tower(2, 8, extend_vocabulary={"units": 9})}, "links": []},
    "one set of weights": {
        "towers": {"text": tower(2, 8), "speech": {"share_with": "text"}},
        "links": [link("speech", "text", every=1)],
    },
    "another kind": {
        "towers": {
            "image": {"kind": "image_units", "config": {"side": 2, "levels": 4, "dim": 8, "n_layers": 2, "n_heads": 2}},
            "text": tower(2, 8),
        },
        "links": [link("image", "text", every=1), link("text", "image", every=1)],
    },
}


def made(name: str) -> Composition:
    spec, wrong = check_spec({"name": "tiny", **ATTENDS[name]})
    assert spec is not None and not wrong, wrong
    zipped = zippkit.compile(spec)
    randomise(zipped.model)
    return zipped


@pytest.mark.parametrize("name", ATTENDS)
def test_each_of_these_computes_the_equation(name: str) -> None:
    (certificate,) = verify(made(name), only=["C11"]).certificates
    assert certificate.passed, certificate.detail
    assert "positions of" in certificate.detail
    assert ("the layers of image (image_units) are their own" in certificate.detail) == (name == "another kind")


def shifted(name: str, by: int) -> Plant:
    """The source's places are counted from another number."""

    def plant(monkeypatch: pytest.MonkeyPatch, zipped: Composition) -> None:
        original = attending.Attending.write

        def write(self: Any, source: Tensor, tokens: TowerBatch) -> Any:
            return original(self, source, replace(tokens, **{name: getattr(tokens, name) + by}))

        monkeypatch.setattr(attending.Attending, "write", write)

    return plant


def reordered(change: Callable[[list[Op]], None]) -> Plant:
    """Operations run in another order."""

    def plant(monkeypatch: pytest.MonkeyPatch, zipped: Composition) -> None:
        ops = list(zipped.plan.ops)
        change(ops)
        assert ops != list(zipped.plan.ops)
        zipped.model.plan = Plan(tuple(ops), zipped.plan.needs)

    return plant


def swap_links(ops: list[Op]) -> None:
    first, second = (i for i, op in enumerate(ops) if op.kind == "read")
    ops[first], ops[second] = ops[second], ops[first]


def tap_late(ops: list[Op]) -> None:
    """The tap on speech[2] is taken behind the link into speech[2]."""
    tap = next(op for op in ops if op.kind == "write" and (op.tower, op.depth) == ("speech", 2))
    ops.remove(tap)
    ops.insert(1 + next(i for i, op in enumerate(ops) if op.kind == "read" and op.tower == "speech"), tap)


def depths(change: Callable[..., int]) -> Plant:
    """Sites read another depth of the source; the weights stay those of the right composition."""

    def plant(monkeypatch: pytest.MonkeyPatch, zipped: Composition) -> None:
        monkeypatch.setattr(graph_module, "_source_depth", change)
        other = zippkit.compile(zipped.spec.model_copy())
        assert [s.source_depth for s in other.graph.sites] != [s.source_depth for s in zipped.graph.sites]
        zipped.model.plan = other.model.plan

    return plant


def patched(where: Any, name: str, change: Callable[..., Any]) -> Plant:
    return lambda monkeypatch, zipped: monkeypatch.setattr(where, name, change)


def early_places(monkeypatch: pytest.MonkeyPatch, zipped: Composition) -> None:
    original = Interleaving._insert

    def insert(self: Any, tower: str) -> None:
        self.order -= 2
        original(self, tower)
        self.order += 2

    monkeypatch.setattr(Interleaving, "_insert", insert)


def next_neighbour(monkeypatch: pytest.MonkeyPatch, zipped: Composition) -> None:
    original = prefix.first_of_segment
    monkeypatch.setattr(prefix, "first_of_segment", lambda tokens, segment: original(tokens, segment) + 1)


def another_pace(monkeypatch: pytest.MonkeyPatch, zipped: Composition) -> None:
    for site in zipped.graph.sites:
        module = zipped.model.link(site)
        module.config = module.config.model_copy(update={"pace": 1.5})


def spoilt_source(monkeypatch: pytest.MonkeyPatch, zipped: Composition) -> None:
    """On the copies that certificates make too."""
    original = attending.Attending.write

    def write(self: Any, source: Tensor, tokens: TowerBatch) -> Any:
        size = source.square().mean(dim=-1, keepdim=True).sqrt()
        return original(self, (source / size) ** 3, tokens)

    monkeypatch.setattr(attending.Attending, "write", write)


FAULTS: dict[str, tuple[str, Plant, str]] = {
    "the pace is off by one": ("pace", another_pace, "link speech_to_text.0"),
    "places are off by one": ("both ways", shifted("positions", 1), "link"),
    "keys count from one": ("keys", shifted("offset", 1), "link speech_to_text.0"),
    "links of a site are swapped": ("two into one site", reordered(swap_links), "link a.0"),
    "a tap is taken after fusion": ("tap and site at one depth", reordered(tap_late), "link speech_to_text.0"),
    "source_every counts from zero": (
        "source_every",
        depths(lambda link, index, depth, source, target: index * link.source_every),
        "link speech_to_text.0",
    ),
    "relative depth is rounded down": (
        "both ways",
        depths(lambda link, index, depth, source, target: depth * source.n_layers // target.n_layers),
        "link",
    ),
    "final is one before": (
        "source final",
        depths(lambda link, index, depth, source, target: source.n_layers - 1),
        "link speech_to_text.0",
    ),
    "blind positions are rewritten": (
        "both ways",
        patched(gated_cross_attention, "where_seen", lambda sees, rewritten, target: rewritten),
        "link",
    ),
    "a place is visible too early": ("prefix", early_places, "link text_to_image.0"),
    "a place takes its neighbour's tokens": ("prefix", next_neighbour, "link speech_to_text.0"),
    "a source is not what it was": ("both ways", spoilt_source, "link speech_to_text.0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed_where_they_are(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, plant, where = FAULTS[fault]
    zipped = made(name)
    plant(monkeypatch, zipped)
    (certificate,) = verify(zipped, only=["C11"]).certificates
    assert not certificate.passed, certificate.detail
    assert f"first at {where}" in certificate.detail, certificate.detail


def test_what_has_no_equation_here_is_told() -> None:
    towers = {"image": ATTENDS["another kind"]["towers"]["image"], "text": tower(2, 8, config={"n_heads": 2})}
    zipped = make(towers, [{"kind": "joint_attention", "from": "image", "into": "text", "every": 1}])
    (certificate,) = verify(zipped, only=["C11"]).certificates
    assert certificate.passed
    assert certificate.detail == "not tried: the reference shares no attention of a tower of kind 'image_units'"
