"""C5 holds on sound compositions, and each way of seeing another document fails it, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

import zippkit
from helpers.compositions import link, make, make_spec, tower
from helpers.random_specs import specs
from zippkit.batch import collate as collating
from zippkit.batch.batch import UNDESCRIBED, Batch, Segment
from zippkit.batch.columns import Line
from zippkit.composition import Composition
from zippkit.errors import DataError, ZippkitError
from zippkit.evaluation.certificates import packing, verify
from zippkit.loading import check_spec
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.task import Task
from zippkit.training.packing_check import check_packing

pytestmark = pytest.mark.slow

SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 2},
    "gemma3_text": {"sliding_window": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
}


def c5(zipped: Composition) -> str:
    """What C5 says; empty if it holds."""
    (found,) = verify(zipped, only=["C5"]).certificates
    return "" if found.passed else found.detail


LINKS: dict[str, dict[str, Any]] = {
    "gated_cross_attention": {"every": 1},
    "cross_attention": {"kind": "cross_attention", "every": 1, "config": {"n_heads": 2}},
    "sync": {"kind": "cross_attention", "every": 1, "config": {"n_heads": 2}, "clock": "sync"},
    "joint_attention": {"kind": "joint_attention", "every": 1, "config": {}},
    "prefix": {"kind": "prefix", "config": {}},
    "resampler": {"kind": "resampler", "config": {"n_heads": 2, "output": "prefix"}},
    "perceiver": {"kind": "resampler", "every": 1, "config": {"n_heads": 2, "output": "cross_attention"}},
}


def two(kind: str = "gated_cross_attention") -> Composition:
    """Text that reads speech by a link of this kind."""
    return make({"text": tower(2), "speech": tower(2)}, [link("speech", "text", **LINKS[kind])])


@pytest.mark.parametrize("kind", LINKS)
def test_it_holds_for_every_kind_of_link(kind: str) -> None:
    assert c5(two(kind)) == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_it_holds_for_decoders_of_transformers(family: str) -> None:
    model = SIZES | HEADS | FAMILIES[family] | {"model_type": family}
    text = {"kind": "hf_causal_lm", "config": {"model": model}, "frame": {"begin": 1, "end": 2}}
    assert c5(zippkit.compile(make_spec({"text": text, "speech": tower(2)}, [link("speech", "text", every=1)]))) == ""


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(described=specs())
def test_it_holds_for_any_composition(described: dict[str, Any]) -> None:
    spec, wrong = check_spec(described)
    assume(spec is not None and not wrong)
    assert c5(zippkit.compile(spec)) == ""


Plant = Callable[[pytest.MonkeyPatch], None]


def no_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's documents see each other."""
    original = Composition.collate

    def collate(self: Composition, *args: Any, **more: Any) -> Batch:
        batch = original(self, *args, **more)
        lost = {"packed": False, **UNDESCRIBED}
        towers = {n: replace(t, start=torch.zeros_like(t.start), **lost) for n, t in batch.towers.items()}
        return replace(batch, towers=towers)

    monkeypatch.setattr(Composition, "collate", collate)


def positions_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Line.positions

    def positions(self: Line) -> Any:
        return np.tile(np.arange(self.shape[1]), self.shape[0]) if self.packed else original(self)

    monkeypatch.setattr(Line, "positions", positions)


def segments_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are counted anew in each document of a row."""
    original = collating.in_rows
    monkeypatch.setattr(collating, "in_rows", lambda row, orders, segments: original(row, orders, [0] * len(orders)))


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (no_documents, "gated_cross_attention"),
        (no_documents, "joint_attention"),
        (positions_go_on, "gated_cross_attention"),
        (segments_of_one_name, "prefix"),
        (segments_of_one_name, "resampler"),
    ],
)
def test_it_sees_each_way_of_getting_it_wrong(plant: Plant, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped = two(kind)
    plant(monkeypatch)
    assert c5(zipped).startswith("documents that share a row change ")


def test_what_other_packages_bring_need_not_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    zipped = two("gated_cross_attention")
    no_documents(monkeypatch)
    monkeypatch.setattr(packing, "kinds", lambda group: [])
    (found,) = verify(zipped, only=["C5"]).certificates
    assert found.passed and found.detail.startswith("not for ") and "so `pack` is refused: documents" in found.detail


def test_rows_that_are_compared_hold_one_document_each() -> None:
    spec = make_spec({"text": tower(2), "speech": tower(2)}, [link("speech", "text", every=1)]).model_dump(
        by_alias=True
    )
    contrast = [{"from": "speech", "into": "text", "target_depth": 2}]
    zipped = zippkit.compile(CompositionSpec.model_validate(spec | {"contrastive": contrast}))
    (found,) = verify(zipped, only=["C5"]).certificates
    assert found.passed and "`pack` is refused" in found.detail
    with pytest.raises(DataError, match="a contrastive loss compares rows"):
        zipped.collate([[Segment("text", [1])], [Segment("text", [2])]], pack=100)


class Examples:
    """Two examples of a task, as `TaskData` gives them."""

    task = Task(("speech",), "text")
    rows: Sequence[list[Segment]] = [
        [Segment("speech", [3, 4, 5], loss=False), Segment("text", [6, 7])],
        [Segment("speech", [8, 9], loss=False), Segment("text", [10, 11, 12])],
    ]

    def __len__(self) -> int:
        return len(self.rows)

    def segments(self, index: int) -> list[Segment]:
        return self.rows[index]


def test_a_run_refuses_what_does_not_keep_documents_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    zipped, data = two(), [Examples()]
    check_packing(zipped, data, "train")  # type: ignore[arg-type]
    no_documents(monkeypatch)
    with pytest.raises(ZippkitError, match=r"train: pack: examples that share a row change .* logits of text"):
        check_packing(zipped, data, "train")  # type: ignore[arg-type]
