"""Several ranks learn what one process learns, and write one run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from helpers.ranks import start, wait, zippkit_on
from helpers.tiny_runs import command, saved, spec, tiny_recipe, write_recipe
from zippkit.loading import load_recipe
from zippkit.training.metrics import read_metrics
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow

BACK = {"kind": "gated_cross_attention", "from": "text", "into": "speech", "every": 1, "config": {"n_heads": 2}}
PHASE = {"tasks": ["speech -> text", "text -> speech", "speech"], "batch_size": 5, "steps": 6, "accumulate": 2}


def assert_same_numbers(one: Path, other: Path) -> None:
    """The same lines of metrics, to what the order of additions leaves."""
    assert len(read_metrics(one)) == len(read_metrics(other))
    for expected, found in zip(read_metrics(one), read_metrics(other), strict=True):
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], abs=1e-5)


def test_two_ranks_train_what_one_process_trains(tmp_path: Path) -> None:
    """Accumulated, over three tasks; a checkpoint of two is whole."""
    links = [*spec()["links"], BACK]
    train(tiny_recipe(tmp_path, PHASE, spec=spec(links=links)), tmp_path / "one")
    told = zippkit_on(2, "train", tmp_path / "recipe.yaml", "--out", tmp_path / "two")
    assert [rank.returncode for rank in told] == [0, 0], [rank.stderr for rank in told]
    assert told[0].stdout.strip() == str(tmp_path / "two") and not told[1].stdout
    assert_same_numbers(tmp_path / "one", tmp_path / "two")
    expected, found = saved(tmp_path / "one"), saved(tmp_path / "two")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-4), name


@pytest.mark.ranks
def test_a_signal_to_one_rank_saves_once_and_one_process_goes_on(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, {"steps": 400, "save_every": 400, "log_every": 1})
    ranks = start(2, command("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run"))
    while not read_metrics(tmp_path / "run"):
        time.sleep(0.1)
    ranks[1].send_signal(signal.SIGTERM)
    told = wait(ranks)
    assert [rank.returncode for rank in told] == [130, 130], [rank.stderr for rank in told]
    (saved_at,) = RunFolder(tmp_path / "run").checkpoints("train")
    n_taken = int(saved_at.name.removeprefix("step-"))
    steps = n_taken + 5
    file = write_recipe(tmp_path, {"steps": steps, "save_every": 400, "log_every": 1})
    train(load_recipe(file), tmp_path / "run")
    train(load_recipe(file), tmp_path / "one")
    assert recipe.name == "tiny" and len(read_metrics(tmp_path / "run")) == steps
    assert_same_numbers(tmp_path / "one", tmp_path / "run")


@pytest.mark.ranks
def test_what_cannot_be_in_parts_is_refused_on_every_rank(tmp_path: Path) -> None:
    tiny_recipe(tmp_path, {"optimizer": "adafactor"})
    told = zippkit_on(2, "train", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert [rank.returncode for rank in told] == [2, 2]
    assert "train.optimizer: adafactor" in told[0].stderr and not (tmp_path / "run").exists()
