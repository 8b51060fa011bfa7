"""Experiments: their YAML, their grid, runs that are killed, fail or are shared, and the page."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import command, spec, write_recipe, zippkit

from zippkit.cli import check
from zippkit.composition import load
from zippkit.errors import SpecError, ZippkitError
from zippkit.experiment.cli import lay_out_all, run_experiments
from zippkit.experiment.format import load_experiment
from zippkit.experiment.grid import lay_out
from zippkit.experiment.results import Results, judge_claim
from zippkit.experiment.runner import run_all, tasks_of
from zippkit.experiment.store import Record, Store
from zippkit.recipe import Recipe
from zippkit.trainer import InterruptedRunError, train

PHASE = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2, "save_every": 1}
METRICS = {
    "wer": {"label": "WER", "task": "speech -> text"},
    "kept": {"label": "text kept", "retention": "text"},
}
CLAIM = {
    "text": "It learns.",
    "paper": "1 against 2",
    "metric": "wer",
    "group": ["long"],
    "is": "below",
    "than": ["short"],
}


def experiment(folder: Path, **more: Any) -> Path:
    """An experiment of two cells and two seeds, its recipe and data; returns its folder."""
    if not (folder / "base").exists():
        write_recipe(folder / "base", {**PHASE}, pretrain={"text": PHASE})
    data = {
        "name": "tiny",
        "title": "A tiny experiment",
        "recipe": "base/recipe.yaml",
        "cells": {"short": {"label": "Short"}, "long": {"label": "Long", "set": {"train.steps": 4}}},
        "seeds": [0, 1],
        "metrics": METRICS,
        "table": {"columns": ["wer", "kept"]},
        "plots": [{"title": "Errors", "x": "cells", "metrics": ["wer"]}],
        "claims": [CLAIM, {"text": "Kept.", "paper": "-", "metric": "kept", "group": ["long"], "is": "unchanged"}],
        **more,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return folder


def evaluations(out: Path) -> dict[str, Any]:
    """What every run scored, by its hash."""
    store = Store(out)
    records = {file.stem: store.record(file.stem) for file in (out / "cells").glob("*.json")}
    return {key: record.evaluations for key, record in records.items() if record}


def problems(folder: Path, preset: str = "cpu") -> str:
    with pytest.raises(SpecError) as caught:
        lay_out_all(folder, None, preset)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"celsl": {}}, "celsl: unknown key 'celsl'; did you mean 'cells'?"),
        ({"table": {"columns": ["wre"]}}, "table.columns: no metric is called 'wre'; did you mean 'wer'?"),
        ({"metrics": {**METRICS, "x": {"label": "x"}}}, "metrics.x: expected one of `task`, `retention`"),
        ({"claims": [{**CLAIM, "group": ["lnog"]}]}, "claims[0].group: no cell is called 'lnog'; did you mean 'long'?"),
        ({"claims": [{**CLAIM, "is": "near"}]}, "claims[0].within: near needs `within`"),
        ({"claims": [{**CLAIM, "at": 1}]}, "claims[0].at: the experiment has no axis"),
        ({"presets": {"cpu": {"values": [1]}}}, "presets.cpu.values: the experiment has no axis"),
        ({"presets": {"gpu": {}}}, "presets: no preset is called 'cpu'"),
        (
            {"cells": {"long": {"label": "L", "set": {"train.step": 1}}}},
            "cells.long.set.train.step: unknown key 'step'",
        ),
        ({"cells": {"long": {"label": "L", "drop": ["pretrain.txt"]}}}, "no key 'pretrain.txt'; did you mean 'text'?"),
        (
            {"cells": {"long": {"label": "L", "set": {"spec.towers.text.freeze": 3}}}},
            "cells.long.set.spec.towers.text.freeze: expected true, false",
        ),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = experiment(tmp_path, **({"plots": [], "claims": []} | change))
    told = problems(folder)
    assert message in told
    assert re.match(rf"{folder}/tiny.yaml:\d+: ", told)


def test_mistakes_in_the_base_name_its_own_line(tmp_path: Path) -> None:
    folder = experiment(tmp_path)
    base = folder / "base" / "recipe.yaml"
    base.write_text(base.read_text().replace("batch_size: 4", "batch_sise: 4", 1))
    assert re.search(rf"{base}:\d+: train.batch_sise: unknown key .*in cell 'short'", problems(folder))


def test_check_knows_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = experiment(tmp_path) / "tiny.yaml"
    check(file)
    assert capsys.readouterr().out == f"{file}: tiny is sound\n"
    with pytest.raises(ZippkitError, match="leave them out"):
        check(file, ["train.steps=1"])
    file = experiment(tmp_path, presets={"cpu": {}, "gpu": {"set": {"train.step": 1}}}) / "tiny.yaml"
    with pytest.raises(SpecError, match=r"presets\.gpu\.set\.train\.step: unknown key"):
        check(file)


def test_mistakes_end_the_command_with_2(tmp_path: Path) -> None:
    done = zippkit("experiment", experiment(tmp_path, celsl={}), "--only", "tiny")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "did you mean 'cells'?" in done.stderr


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


def test_a_killed_grid_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = experiment(tmp_path, cells={"short": {"label": "S"}, "long": {"label": "L", "set": {"train.steps": 20}}})
    run_experiments(folder, None, "cpu", tmp_path / "whole")
    out = tmp_path / "killed"
    process = subprocess.Popen(command("experiment", folder, "-o", out), stderr=subprocess.DEVNULL)
    while not (done := list((out / "cells").glob("*.json"))) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert 0 < len(evaluations(out)) < 4
    written = {file: file.stat().st_mtime_ns for file in done}
    again = zippkit("experiment", folder, "-o", out)
    assert again.returncode == 0
    assert f"{len(written)} are done already" in again.stderr
    assert {file: file.stat().st_mtime_ns for file in done} == written
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
        pytest.raises(ZippkitError, match="another process"),
        Store(tmp_path).locked(),
    ):
        pass


def made_up(folder: Path, errors: dict[tuple[str, int], int], **more: Any) -> Results:
    """Results whose runs made so many errors in ten words, by cell and seed; one sentence of one word each."""
    file = load_experiment(experiment(folder, **more) / "tiny.yaml")
    grid = lay_out(file, "cpu")
    records = {}
    for job in grid.jobs:
        n_wrong = errors[job.cell, job.seed]
        answers = [{"id": str(i), "reference": "a", "hypothesis": "b" if i < n_wrong else "a"} for i in range(10)]
        evaluation = {
            "tasks": [{"task": "speech -> text", "answers": answers}],
            "retention": [{"tower": "text", "before": 1.0, "after": 1.0}],
        }
        records[job.key] = Record(status="done", evaluations={"test": evaluation})
    return Results(grid, records)


def test_numbers_and_verdicts_follow_from_the_records(tmp_path: Path) -> None:
    results = made_up(tmp_path, {("short", 0): 5, ("short", 1): 7, ("long", 0): 2, ("long", 1): 3})
    assert results.values("wer", "short") == {0: 0.5, 1: 0.7}
    lower, kept = (judge_claim(results, claim) for claim in results.grid.experiment.claims)
    assert (lower.verdict.value, kept.verdict.value) == ("holds", "holds")
    assert lower.interval == pytest.approx((-0.35, -0.4, -0.3))
    # Sentences 2 to 4 differ in both seeds, 5 and 6 in one: five differences of one sign.
    assert lower.p == pytest.approx(2 / 32)
    crossing = made_up(tmp_path, {("short", 0): 5, ("short", 1): 2, ("long", 0): 2, ("long", 1): 3})
    told = judge_claim(crossing, crossing.grid.experiment.claims[0])
    assert (told.verdict.value, told.why) == ("cannot be told", "the seeds do not agree")


def test_metrics_of_lengths_means_and_best_values(tmp_path: Path) -> None:
    metrics = {
        **deepcopy(METRICS),
        "long": {"label": "long", "task": "speech -> text", "words": [2, None]},
        "mean": {"label": "mean", "geometric_mean": ["wer", "wer"]},
    }
    axis = {"key": "train.steps", "label": "steps", "values": [1, 100], "scale": "log"}
    best = {"text": "t", "paper": "-", "metric": "wer", "group": ["long"], "is": "below", "than": ["short"]}
    results = made_up(
        tmp_path,
        {(cell, seed): 4 for cell in ("short", "long") for seed in (0, 1)},
        metrics=metrics,
        axis=axis,
        cells={"short": {"label": "S"}, "long": {"label": "L", "set": {"train.batch_size": 2}}},
        claims=[{**best, "of": "best_at"}],
        table={"columns": ["wer", "mean"], "best": "wer"},
    )
    assert results.values("long", "short", 1) == {}
    assert results.values("mean", "short", 1) == pytest.approx({0: 0.4, 1: 0.4})
    for job in results.grid.jobs:
        if job.cell == "short" and job.value == 100:
            results.records[job.key].evaluations["test"]["tasks"][0]["answers"][0]["hypothesis"] = "a"
    judged = judge_claim(results, results.grid.experiment.claims[0])
    assert (judged.first, judged.second) == ({0: 0.0, 1: 0.0}, {0: 2.0, 1: 2.0})
    assert judged.verdict.value == "holds"


def test_the_page_says_what_to_beware_of_and_loads_nothing(tmp_path: Path) -> None:
    note = "The numbers mean <nothing>."
    folder = experiment(tmp_path, seeds=[0], presets={"smoke": {"note": note}})
    done = zippkit("experiment", folder, "--smoke", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "index.html").read_text()
    assert "The numbers mean &lt;nothing&gt;." in page
    assert "one seed only" in page and "1 against 2" in page
    assert "0 exactly" in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "<svg" in page
    assert (tmp_path / "out" / "tiny.md").read_text().count("cannot be told") == 2
    assert (tmp_path / "out" / "tiny-1.svg").read_text().startswith("<?xml")
