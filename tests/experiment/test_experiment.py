"""Experiments: their YAML, their grid, runs that are killed, fail or are shared, and the page."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.tiny_experiments import METRICS, evaluations, experiment
from helpers.tiny_runs import spec, zippkit
from zippkit.composition import load
from zippkit.errors import ZippkitError
from zippkit.evaluation.evaluate import evaluate
from zippkit.experiment import runner
from zippkit.experiment.cli import lay_out_all, run_experiments
from zippkit.experiment.runner import run_all, tasks_of
from zippkit.experiment.store import Store
from zippkit.spec.recipe import Recipe
from zippkit.training.trainer import InterruptedRunError, train

pytestmark = pytest.mark.slow


def test_the_grid_has_every_cell_value_and_seed(tmp_path: Path) -> None:
    axis = {"key": "train.fraction", "label": "data", "values": [0.5, 1.0]}
    preset = {"seeds": [7], "set": {"train.batch_size": 2}, "cells": {"long": {"train.steps": 9}}}
    folder = experiment(tmp_path, axis=axis, presets={"cpu": preset}, claims=[])
    (grid,) = lay_out_all(folder, None, "cpu")
    found = {(job.cell, job.value): job.recipe for job in grid.jobs}
    assert list(found) == [(cell, value) for cell in ("short", "long") for value in (0.5, 1.0)]
    assert {recipe.seed for recipe in found.values()} == {7}
    assert {recipe.train.batch_size for recipe in found.values()} == {2}
    assert [found["short", 0.5].train.steps, found["long", 0.5].train.steps] == [2, 9]
    assert [found["long", 0.5].train.fraction, found["long", 1.0].train.fraction] == [0.5, 1.0]


def test_an_inline_recipe_and_another_spec(tmp_path: Path) -> None:
    folder = experiment(tmp_path)
    base = yaml.safe_load((folder / "base" / "recipe.yaml").read_text())
    (folder / "base" / "other.yaml").write_text(yaml.safe_dump(spec(name="other")))
    cells = {"a": {"label": "A"}, "b": {"label": "B", "spec": "base/{preset}.yaml"}}
    experiment(folder, recipe={**base, "data": "base/data"}, cells=cells, claims=[], presets={"other": {}})
    (grid,) = lay_out_all(folder, None, "other")
    assert [job.recipe.spec.name for job in grid.jobs] == ["tiny", "tiny", "other", "other"]
    assert grid.jobs[0].recipe.data == folder / "base" / "data"


def test_equal_recipes_are_one_run(tmp_path: Path) -> None:
    said_twice = {"label": "Also short", "set": {"train.steps": 2, "train.fraction": 1.0}}
    experiment(tmp_path, cells={"short": {"label": "Short"}, "same": said_twice}, claims=[])
    data = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    (tmp_path / "second.yaml").write_text(yaml.safe_dump({**data, "name": "second"}))
    jobs = [job for grid in lay_out_all(tmp_path, None, "cpu") for job in grid.jobs]
    assert (len(jobs), len(tasks_of(jobs))) == (8, 2)


def test_the_hash_knows_the_data(tmp_path: Path) -> None:
    folder = experiment(tmp_path)
    before = [job.key for job in lay_out_all(folder, None, "cpu")[0].jobs]
    assert before == [job.key for job in lay_out_all(folder, None, "cpu")[0].jobs]
    assert len(set(before)) == 4
    manifest = folder / "base" / "data" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert not set(before) & {job.key for job in lay_out_all(folder, None, "cpu")[0].jobs}


def test_the_hash_knows_the_weights(tmp_path: Path) -> None:
    weights = tmp_path / "text.safetensors"
    weights.write_bytes(b"some")
    cells = {"a": {"label": "A", "drop": ["pretrain.text"], "set": {"spec.towers.text.weights": str(weights)}}}
    folder = experiment(tmp_path, cells=cells, claims=[], seeds=[0])
    (before,) = [job.key for job in lay_out_all(folder, None, "cpu")[0].jobs]
    weights.write_bytes(b"other")
    assert before != lay_out_all(folder, None, "cpu")[0].jobs[0].key
    weights.write_bytes(b"some")
    assert before == lay_out_all(folder, None, "cpu")[0].jobs[0].key


def test_pre_trained_towers_are_shared_and_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = experiment(tmp_path, seeds=[0])
    (grid,) = lay_out_all(folder, None, "cpu")
    run_all(grid.jobs, Store(tmp_path / "shared"))
    assert capsys.readouterr().err.count("pretrain.text") == 1
    for job in grid.jobs:
        run_all([job], Store(tmp_path / job.cell))
        alone = load(Store(tmp_path / job.cell).run(job.key).path).model.state_dict()
        shared = load(Store(tmp_path / "shared").run(job.key).path).model.state_dict()
        assert all(torch.equal(alone[name], shared[name]) for name in alone)
        assert evaluations(tmp_path / job.cell)[job.key] == evaluations(tmp_path / "shared")[job.key]


def killed_at_evaluation(number: int, folder: Path, out: Path) -> bool:
    """Run the grid in a child that is killed when it is about to evaluate so many a run; whether it was."""
    child = os.fork()
    if child == 0:
        try:
            begun = 0

            def evaluate_or_die(*arguments: Any) -> Any:
                nonlocal begun
                begun += 1
                if begun == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return evaluate(*arguments)

            runner.evaluate = evaluate_or_die
            run_experiments(folder, None, "cpu", out)
        finally:
            os._exit(1)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_killed_grid_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = experiment(tmp_path, cells={"short": {"label": "S"}, "long": {"label": "L", "set": {"train.steps": 20}}})
    run_experiments(folder, None, "cpu", tmp_path / "whole")
    out = tmp_path / "killed"
    assert killed_at_evaluation(3, folder, out), "it ended before it was killed"
    assert len(evaluations(out)) == 2
    written = {file: file.stat().st_mtime_ns for file in (out / "cells").glob("*.json")}
    again = zippkit("experiment", folder, "-o", out)
    assert again.returncode == 0
    assert "2 are done already" in again.stderr
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert evaluations(out) == evaluations(tmp_path / "whole")
    assert len(evaluations(out)) == 4
    assert (out / "index.html").exists()


def test_a_cell_that_fails_is_told_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    towers = spec()["towers"]
    towers["speech"]["config"] |= {"vocab_size": 6}
    towers["speech"]["frame"] = {"begin": 4, "end": 5}
    cells = {"bad": {"label": "Bad", "set": {"spec.towers": towers}}, "long": {"label": "Long"}}
    folder = experiment(tmp_path, cells=cells, claims=[], seeds=[0])
    page, n_failed = run_experiments(folder, None, "cpu", tmp_path / "out")
    assert n_failed == 1
    assert "speech has 8 token ids, the tower 6" in page.read_text()
    told = capsys.readouterr().err
    assert "[1/2] FAILED" in told and "[2/2] done" in told
    again = zippkit("experiment", folder, "-o", tmp_path / "out")
    assert again.returncode == 1
    assert "1 are done already" in again.stderr and "FAILED" in again.stderr


def test_a_bug_in_one_cell_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = experiment(tmp_path, seeds=[0])
    monkeypatch.setattr("zippkit.experiment.runner.evaluate", lambda *_: 1 / 0)
    _, n_failed = run_experiments(folder, None, "cpu", tmp_path / "out")
    assert n_failed == 2
    assert not any(evaluations(tmp_path / "out").values())
    monkeypatch.undo()
    assert run_experiments(folder, None, "cpu", tmp_path / "out")[1] == 0


def test_an_interrupted_grid_leaves_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = experiment(tmp_path, seeds=[0])

    def stop_at_the_second(recipe: Recipe, out: Path) -> None:
        if recipe.train.steps == 4:
            raise InterruptedRunError("stopped")
        train(recipe, out)

    monkeypatch.setattr("zippkit.experiment.runner.train", stop_at_the_second)
    with pytest.raises(InterruptedRunError):
        run_experiments(folder, None, "cpu", tmp_path / "out")
    assert "not measured" in (tmp_path / "out" / "index.html").read_text()
    assert len(evaluations(tmp_path / "out")) == 1
    monkeypatch.undo()
    assert run_experiments(folder, None, "cpu", tmp_path / "out")[1] == 0
    assert "not measured" not in (tmp_path / "out" / "index.html").read_text()


def test_a_changed_file_reruns_only_the_cells_that_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = experiment(tmp_path, seeds=[0])
    run_experiments(folder, None, "cpu", tmp_path / "out")
    cells = {"short": {"label": "Other words"}, "long": {"label": "Long", "set": {"train.steps": 5}}}
    experiment(tmp_path, seeds=[0], cells=cells)
    capsys.readouterr()
    run_experiments(folder, None, "cpu", tmp_path / "out")
    told = capsys.readouterr().err
    assert "2 runs for 2 cells and seeds; 1 are done already" in told
    assert "tiny: long, seed 0" in told and "tiny: short" not in told


def test_another_split_is_evaluated_without_training_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = experiment(tmp_path, seeds=[0])
    run_experiments(folder, None, "cpu", tmp_path / "out")
    more = {"label": "on train", "task": "speech -> text", "split": "train"}
    experiment(tmp_path, seeds=[0], metrics={**METRICS, "fit": more}, table={"columns": ["wer", "fit"]})
    capsys.readouterr()
    run_experiments(folder, None, "cpu", tmp_path / "out")
    assert "train: " not in capsys.readouterr().err
    assert all(set(found) == {"test", "train"} for found in evaluations(tmp_path / "out").values())


def test_a_run_is_done_once_what_it_failed_at_is_no_longer_asked(tmp_path: Path) -> None:
    nowhere = {"label": "nowhere", "task": "speech -> text", "split": "nowhere"}
    folder = experiment(tmp_path, seeds=[0], metrics={**METRICS, "nowhere": nowhere})
    assert run_experiments(folder, None, "cpu", tmp_path / "out")[1] == 2
    experiment(tmp_path, seeds=[0])
    assert run_experiments(folder, None, "cpu", tmp_path / "out")[1] == 0


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with (
        Store(tmp_path).locked(),
        pytest.raises(ZippkitError, match="runs experiments there"),
        Store(tmp_path).locked(),
    ):
        pass
