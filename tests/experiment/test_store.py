"""What a run is known by, and what becomes of it when data, scorers or the chosen experiments change."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.tiny_experiments import evaluations, experiment
from zippkit.errors import ZippkitError
from zippkit.experiment import runner
from zippkit.experiment.cli import lay_out_all, run_experiments
from zippkit.experiment.store import Record, Store
from zippkit.spec.recipe import Recipe
from zippkit.training.trainer import InterruptedRunError, train

pytestmark = pytest.mark.slow

ONE = {"short": {"label": "S"}}


def key(folder: Path) -> str:
    return lay_out_all(folder, None, "cpu")[0].jobs[0].key


def test_the_hash_knows_what_a_run_starts_from(tmp_path: Path) -> None:
    folder = experiment(tmp_path, seeds=[0], claims=[], cells=ONE)
    run_experiments(folder, None, "cpu", tmp_path / "out")
    shutil.copytree(Store(tmp_path / "out").run(key(folder)).path, tmp_path / "first")
    cells = {"a": {"label": "A", "drop": ["pretrain.text"], "set": {"start_from": str(tmp_path / "first")}}}
    experiment(folder, seeds=[0], claims=[], cells=cells)
    before = key(folder)
    shutil.move(tmp_path / "first", tmp_path / "moved")
    cells["a"]["set"] = {"start_from": str(tmp_path / "moved")}
    experiment(folder, seeds=[0], claims=[], cells=cells)
    assert key(folder) == before
    for file in sorted((tmp_path / "moved").rglob("*.safetensors")):
        kept = file.read_bytes()
        file.write_bytes(kept[:-4] + b"\0\0\0\1")
        assert key(folder) != before, file
        file.write_bytes(kept)
    assert key(folder) == before


def test_the_hash_knows_a_config_that_comes_with_the_weights(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    weights = tmp_path / "hf"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"x")
    config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"vocab_size": 7, "intermediate_size": 32}

    def write(**more: Any) -> str:
        (weights / "config.json").write_text(json.dumps({**config, **more}))
        return key(experiment(tmp_path, seeds=[0], claims=[], cells=cells))

    tower = {"kind": "hf_causal_lm", "weights": str(weights), "frame": {"begin": 1, "end": 2}, "freeze": True}
    cells = {"a": {"label": "A", "drop": ["pretrain.text"], "set": {"spec.towers.text": tower}}}
    assert write() != write(rope_theta=5.0)
    assert write() == write()
    # A config of the spec's own is in the recipe already.
    cells["a"]["set"] = {
        "spec.towers.text.weights": str(weights),
    }
    assert write() == write(rope_theta=5.0)


def test_a_run_goes_on_where_its_data_were_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = experiment(tmp_path, seeds=[0], claims=[], cells=ONE)

    def stop(recipe: Recipe, out: Path) -> None:
        raise InterruptedRunError("stopped")

    monkeypatch.setattr(runner, "train", stop)
    with pytest.raises(InterruptedRunError):
        run_experiments(folder, None, "cpu", tmp_path / "out")
    monkeypatch.setattr(runner, "train", train)
    known = key(folder)
    shutil.move(folder / "base" / "data", folder / "base" / "data2")
    base = folder / "base" / "recipe.yaml"
    base.write_text(base.read_text().replace("data: data", "data: data2"))
    assert key(folder) == known
    assert run_experiments(folder, None, "cpu", tmp_path / "out")[1] == 0
    assert Store(tmp_path / "out").run(known).recipe().data.name == "data2"
    assert {path.name for path in (tmp_path / "out" / "cells").iterdir()} == {known, f"{known}.json"}


def test_the_page_keeps_experiments_that_are_not_run_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = experiment(tmp_path, seeds=[0], claims=[])
    data = yaml.safe_load((folder / "tiny.yaml").read_text())
    (folder / "other.yaml").write_text(yaml.safe_dump({**data, "name": "other", "title": "Another one"}))
    third = {**data, "name": "third", "title": "Never run", "set": {"train.batch_size": 3}, "place": -1}
    (folder / "third.yaml").write_text(yaml.safe_dump(third))
    (folder / "wrong.yaml").write_text("name: wrong\n")
    out = tmp_path / "out"
    run_experiments(folder, ["tiny"], "cpu", out)
    run_experiments(folder, ["other"], "cpu", out)
    page = (out / "index.html").read_text()
    assert "A tiny experiment" in page and "Another one" in page and "Never run" not in page
    assert f"not on the page: {folder}/wrong.yaml:1" in capsys.readouterr().err
    run_experiments(folder, ["third"], "cpu", out)
    page = (out / "index.html").read_text()
    assert page.index("Never run") < page.index("Another one") < page.index("A tiny experiment")


def test_what_no_scorer_heard_is_evaluated_again_once_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = experiment(tmp_path, seeds=[0], claims=[], cells=ONE)
    out, evaluated = tmp_path / "out", runner.evaluate
    there: list[bool] = []

    def passing_over(path: Path, split: str) -> Any:
        reason = "split 'test' has no text beside the speech" if there else "scoring speech needs ears"
        return replace(evaluated(path, split), skipped=(f"text -> speech: {reason}",))

    def scorer(kind: str, config: dict[str, Any]) -> None:
        if not there:
            raise ZippkitError("not installed")

    def run() -> str:
        capsys.readouterr()
        assert run_experiments(folder, None, "cpu", out)[1] == 0
        return capsys.readouterr().err

    monkeypatch.setattr(runner, "evaluate", passing_over)
    monkeypatch.setattr(runner, "open_scorer", scorer)
    assert "0 are done already" in run()
    assert "scoring speech needs ears" in (out / "index.html").read_text()
    assert "1 are done already" in run()
    there.append(True)
    assert "0 are done already" in run()
    # What is passed over now has another reason, and is not tried for ever.
    assert "no text beside the speech" in (out / "index.html").read_text()
    assert "1 are done already" in run()
    assert set(next(iter(evaluations(out).values()))) == {"test"}


def test_records_know_zippkits_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = experiment(tmp_path, seeds=[0], claims=[], cells=ONE)
    monkeypatch.setattr(runner, "version", lambda _: "0.0.1")
    run_experiments(folder, None, "cpu", tmp_path / "out")
    record = Store(tmp_path / "out").record(key(folder))
    assert record is not None and record.versions == ["0.0.1"]
    assert "different versions" not in (tmp_path / "out" / "index.html").read_text()
    monkeypatch.setattr(runner, "version", lambda _: "0.0.2")
    experiment(tmp_path, seeds=[0], claims=[])
    run_experiments(folder, None, "cpu", tmp_path / "out")
    assert "different versions of zippkit: 0.0.1, 0.0.2." in (tmp_path / "out" / "index.html").read_text()


def test_older_records_are_read() -> None:
    assert Record.model_validate({"status": "done", "evaluations": {"test": {}}}).versions == []
