"""A step that a compiling device would wait in, or compile again and again, is told with the place of the culprit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from helpers.compositions import link, make, tower
from zippkit.composition import Composition
from zippkit.evaluation.certificates import device_safe as proof
from zippkit.evaluation.certificates.report import Certificate
from zippkit.model.loss import loss
from zippkit.training import step

pytestmark = pytest.mark.slow


def zipped() -> Composition:
    return make({"text": tower(1, 8), "speech": tower(1, 8)}, [link("speech", "text", every=1)])


def certificates() -> Iterator[Certificate]:
    """Of the linked direction alone, one as it is asked for."""
    kind = "speech -> text"
    return proof._certify(made := zipped(), kind, proof._kinds(made)[kind])


def test_kinds_of_batches() -> None:
    assert list(proof._kinds(zipped())) == ["text", "speech", "speech -> text", "all together"]


def test_a_sound_composition() -> None:
    found = list(certificates())
    assert [(each.name, each.passed) for each in found] == [("D1", True), ("D2", True)]
    assert found[1].claim == "a step of speech -> text is one graph for each shape"
    assert found[1].detail == "3 batches of 1 shape"


def test_rows_that_train_nothing() -> None:
    made = make({"text": tower(1, 8, freeze=True), "speech": tower(1, 8)}, [link("speech", "text", every=1)])
    found = next(proof._certify(made, "text", [["text"]] * 2))
    assert found.passed and found.detail == "such rows train nothing: forward pass and loss"


def test_whoever_looks_at_a_value_or_makes_a_shape_of_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks(outputs: Any, batch: Any, *more: Any) -> dict[str, torch.Tensor]:
        found = loss(outputs, batch, *more)
        logits = next(iter(outputs.values()))
        return found | {"total": found["total"] + logits[logits > 0].sum()}

    monkeypatch.setattr(step, "loss", looks)
    monkeypatch.setattr(proof, "loss", looks)
    without_values = next(certificates())
    assert not without_values.passed
    assert "test_device_safe.py:" in without_values.detail and " in looks: " in without_values.detail


def test_whatever_changes_between_batches_of_one_shape_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0.0]

    def counts(*given: Any) -> dict[str, torch.Tensor]:
        calls[0] += 1
        found = loss(*given)
        return found | {"total": found["total"] * calls[0]}

    monkeypatch.setattr(proof, "loss", counts)
    first, second = certificates()
    assert first.passed and not second.passed
    assert "RecompileError" in second.detail and "calls" in second.detail, second.detail
