"""Frozen towers that ranks share: each reads its rows, checkpoints name them by hash, no rank ever has the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.ranks import zippkit_on
from helpers.tiny_runs import saved, spec, tiny_recipe
from zippkit.checkpoint.manifest import read_checkpoint_manifest
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.composition import compile, load
from zippkit.training.starting_point import bare_towers
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow


def recipe(folder: Path, steps: int, **more: Any) -> Path:
    """Text whose weights are in a folder of their own."""
    towers = spec()["towers"]
    towers["text"]["weights"] = str(folder / "text")
    tiny_recipe(folder, {"steps": steps, "save_every": 2}, spec=spec(towers=towers), **more)
    return folder / "recipe.yaml"


def test_a_frozen_tower_is_read_by_rows_and_named_by_hash(tmp_path: Path) -> None:
    from zippkit.loading import load_recipe, load_spec

    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec()))
    write_tower(tmp_path / "text", compile(load_spec(tmp_path / "spec.yaml")).model.tower("text"), "decoder")
    shared = {"parallel": {"shard": "all"}}
    assert bare_towers(load_recipe(recipe(tmp_path, 4, **shared)), 2) == ["text"]
    for steps in (4, 8):
        train(load_recipe(recipe(tmp_path, steps)), tmp_path / "one")
        told = zippkit_on(2, "train", recipe(tmp_path, steps, **shared), "--out", tmp_path / "two")
        assert [rank.returncode for rank in told] == [0, 0], [rank.stderr for rank in told]
    one, two = (read_checkpoint_manifest(tmp_path / run / "model") for run in ("one", "two"))
    assert one["frozen"] == two["frozen"]
    assert one["towers"]["text"] == two["towers"]["text"]
    assert one["files"].keys() == two["files"].keys()
    expected, found = saved(tmp_path / "one"), saved(tmp_path / "two")
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name
    load(tmp_path / "two")
