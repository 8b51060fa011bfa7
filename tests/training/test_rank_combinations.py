"""What recipes ask for besides, on two ranks: they learn what one process learns, or it is refused with the reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.ranks import start, wait, zippkit_on
from helpers.tiny_runs import saved, spec, tiny_recipe, write_data
from zippkit.training.metrics import read_metrics
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import train

pytestmark = [pytest.mark.slow, pytest.mark.ranks]

TOWERS = spec()["towers"]
LISTENS = spec(towers={"text": {**TOWERS["text"], "freeze": False}, "speech": {**TOWERS["speech"], "freeze": True}})
WHOLE = spec(towers={**LISTENS["towers"], "speech": {**LISTENS["towers"]["speech"], "place": "replicate"}})
FEW = {"steps": 4, "save_every": 2, "log_every": 1}
BOTH = {"tasks": ["speech -> text", "speech"]}
STAGES = [
    {**FEW, "name": "link", "freeze": {"towers.speech": True}},
    {**FEW, **BOTH, "name": "layers", "freeze": {"towers.speech": {"layers.*": "freeze", "[!l]*": "train"}}},
    {**FEW, "name": "tower", "freeze": {"links.speech_to_text": True}, "tasks": ["speech"]},
]
ALL = {"shard": "all"}
ROOT = {"shard": "all", "frozen": "root"}
MIXTURE = {"heard": {"path": "data"}, "more": {"path": "other", "tasks": ["speech"]}}

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "packing": ({**FEW, **BOTH, "batch_size": 6, "pack": True, "pack_length": 24}, {}),
    "a row for each part": ({**FEW, **BOTH, "batch_size": 2, "accumulate": 2}, {"parallel": ALL}),
    "fewer rows than ranks": ({**FEW, "batch_size": 1}, {"parallel": ROOT}),
    "kept states": ({**FEW, "cache_sources": True}, {"spec": LISTENS}),
    "kept states of a whole tower": ({**FEW, "cache_sources": True}, {"spec": WHOLE, "parallel": ALL}),
    "stages": (STAGES, {}),
    "stages, all in parts": (STAGES, {"parallel": ALL}),
    "a mixture": (FEW, {"data": MIXTURE}),
    "recomputed": ({**FEW, "recompute": True, "pack": True, "pack_length": 24}, {"parallel": ALL}),
    "the best": (FEW, {"validation": {"split": "test", "evaluate_every": 2}}),
}


def run_on(size: int, folder: Path, name: str = "ranks") -> Path:
    told = zippkit_on(size, "train", folder / "recipe.yaml", "--out", folder / name)
    assert [rank.returncode for rank in told] == [0] * size, [rank.stderr for rank in told]
    return folder / name


def assert_same(one: Path, other: Path, phase: str) -> None:
    """Losses, gradient norms, and every tensor of the last checkpoint."""
    assert len(read_metrics(one)) == len(read_metrics(other))
    for expected, found in zip(read_metrics(one), read_metrics(other), strict=True):
        assert found["losses"] == pytest.approx(expected["losses"], abs=2e-5)
        assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], abs=2e-5)
    whole, parts = saved(one, phase), saved(other, phase)
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.allclose(parts[name], tensor, atol=1e-4), name


def prepared(folder: Path, case: str) -> Any:
    phase, more = CASES[case]
    write_data(folder / "other", n=10)
    return tiny_recipe(folder, phase, **more)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_process_learns(case: str, tmp_path: Path) -> None:
    made = prepared(tmp_path, case)
    train(made, tmp_path / "one")
    assert_same(tmp_path / "one", run_on(2, tmp_path), made.main_phases[-1].label)


def test_replicas_of_two_halves(tmp_path: Path) -> None:
    made = tiny_recipe(tmp_path, {**FEW, **BOTH}, parallel={"shard": "all", "replicas": 2})
    train(made, tmp_path / "one")
    assert_same(tmp_path / "one", run_on(4, tmp_path), "train")


def test_dropout_is_drawn_again_alike(tmp_path: Path) -> None:
    tiny_recipe(tmp_path, {**FEW, **BOTH, "dropout": 0.3, "recompute": True})
    assert_same(run_on(2, tmp_path, "a"), run_on(2, tmp_path, "b"), "train")


@pytest.mark.parametrize("frozen", ["per_layer", "root"])
def test_states_of_a_tower_in_parts_are_not_kept(frozen: str, tmp_path: Path) -> None:
    phase = {**FEW, "cache_sources": True}
    tiny_recipe(tmp_path, phase, spec=LISTENS, parallel={"shard": "all", "frozen": frozen})
    told = zippkit_on(2, "train", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert [rank.returncode for rank in told] == [2, 2]
    assert "train.cache_sources: the states of tower 'speech' are computed by each rank for its own" in told[0].stderr
    assert f"({frozen})" in told[0].stderr and "`towers.speech.place: replicate`" in told[0].stderr
    assert not (tmp_path / "run").exists()


POISONED = """
import os, sys
from pathlib import Path
from zippkit.loading import load_recipe
import zippkit.training.phase_run as phase_run
from zippkit import cli
build, steps = phase_run.build_step, []

def poisoned(*given):
    step = build(*given)
    def run(*batches, **more):
        steps.append(1)
        found = step(*batches, **more)
        ill = len(steps) == 3 and os.environ["RANK"] == "1"
        return {**found, "total": found["total"] * float("nan")} if ill else found
    return run

phase_run.build_step = poisoned
cli.main()
"""


def test_what_is_not_finite_on_one_rank_stops_all_with_the_names_of_the_batch(tmp_path: Path) -> None:
    tiny_recipe(tmp_path, FEW)
    words = [sys.executable, "-c", POISONED, "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    told = wait(start(2, words))
    assert [rank.returncode for rank in told] == [2, 2], [rank.stderr for rank in told]
    assert "train: step 3 is not finite (" in told[0].stderr and "total nan" in told[0].stderr
    named = told[0].stderr.rpartition("its batch: ")[2].split(", ")
    assert len(named) == 4 and all(name.strip().startswith("0-") for name in named), "all rows, not one rank's"
    (kept,) = RunFolder(tmp_path / "run").checkpoints("train")
    assert kept.name == "step-000002" and f"the last good checkpoint is {kept}" in told[0].stderr
