"""Training with shared rows: the losses of rows of their own, resumed to the bit, and what cannot be packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.interrupts import assert_same_run, interrupt, on_step
from helpers.tiny_runs import spec, tiny_recipe
from zippkit.errors import ZippkitError
from zippkit.training.stop_signals import InterruptedRunError
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow

TRAIN: dict[str, Any] = {"steps": 6, "batch_size": 6, "log_every": 1, "save_every": 2}
PACKED = TRAIN | {"pack": True, "pack_length": 24}


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["losses"]["total"] if "losses" in line else line["total"] for line in lines]


def test_it_learns_what_it_learns_from_rows_of_their_own(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "a", TRAIN), tmp_path / "apart")
    train(tiny_recipe(tmp_path / "b", PACKED), tmp_path / "packed")
    apart, packed = losses(tmp_path / "apart"), losses(tmp_path / "packed")
    assert len(apart) == 6
    assert packed == pytest.approx(apart, rel=1e-4)


def test_it_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, PACKED)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        on_step(patch, 3, interrupt)
        train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_contrastive_loss_is_refused_with_the_recipe(tmp_path: Path) -> None:
    contrast = [{"from": "speech", "into": "text", "target_depth": 1}]
    with pytest.raises(ZippkitError, match=r"train\.pack: a contrastive loss compares rows"):
        tiny_recipe(tmp_path, PACKED, spec=spec(contrastive=contrast))


def test_a_length_without_packing_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ZippkitError, match="`pack_length` is of `pack: true`"):
        tiny_recipe(tmp_path, TRAIN | {"pack_length": 24})
