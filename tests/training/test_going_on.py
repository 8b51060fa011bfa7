"""Going on with another recipe: what may change does, what must not is refused by name, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.interrupts import assert_same_run, interrupt, killed, on_step
from helpers.tiny_runs import examples, saved, spec, tiny_recipe
from zippkit.checkpoint.manifest import read_checkpoint_manifest
from zippkit.composition import load
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.text import train_words
from zippkit.errors import ZippkitError
from zippkit.evaluation.evaluate import evaluate
from zippkit.loading import load_recipe
from zippkit.training.going_on import HISTORY, Change, differences, read_history, refusal
from zippkit.training.metrics import read_metrics
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import InterruptedRunError, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe and data of a finished run of twelve steps, and of one of twenty-four without a stop."""
    folder = tmp_path_factory.mktemp("going-on")
    train(tiny_recipe(folder, {"steps": 24}), folder / "whole")
    train(tiny_recipe(folder), folder / "run")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def output(run: Path) -> torch.Tensor:
    tensor: torch.Tensor = saved(run)["model links.speech_to_text.0.output.weight"]
    return tensor


def test_a_finished_run_goes_on_to_where_one_without_a_stop_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe(folder, {"steps": 24}), folder / "run")
    assert_same_run(folder / "run", folder / "whole")
    assert "goes on with another recipe\n  train.steps: 12 -> 24\n" in capsys.readouterr().err
    last, whole = (load(folder / name).model.state_dict() for name in ("run", "whole"))
    assert all(torch.equal(last[name], tensor) for name, tensor in whole.items())
    assert RunFolder(folder / "run").recipe().main_phases[0].phase.steps == 24
    before = (folder / "run" / HISTORY).read_bytes()
    train(tiny_recipe(folder, {"steps": 24}), folder / "run")
    assert (folder / "run" / HISTORY).read_bytes() == before


def test_the_history_tells_what_was_run_when(folder: Path) -> None:
    run = folder / "run"
    train(tiny_recipe(folder, {"steps": 16, "save_every": 8}), run)
    train(tiny_recipe(folder, {"steps": 16, "batch_size": 2}), run)
    first, second, third = read_history(run)
    assert (first["steps"], first["changes"]) == ({}, {})
    assert (second["steps"], second["changes"]) == (
        {"train": 12},
        {"train.steps": [12, 16], "train.save_every": [4, 8]},
    )
    assert (third["steps"], third["changes"]) == (
        {"train": 16},
        {"train.save_every": [8, 4], "train.batch_size": [4, 2]},
    )
    assert [line["step"] for line in read_metrics(run)] == [3, 4, 6, 8, 9, 12, 15, 16]


def test_another_batch_size_is_told_and_resumes_to_the_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "run", folder / "other")
    recipe = tiny_recipe(folder, {"steps": 18, "batch_size": 6, "log_every": 2})
    train(recipe, folder / "run")
    said = capsys.readouterr().err
    assert "  train.batch_size: 4 -> 6\n" in said
    assert (
        "  from step 13 on, the order is that of the new batch size: in the epoch under way some examples come" in said
    )
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        on_step(patch, 2, interrupt)
        train(recipe, folder / "other")
    train(recipe, folder / "other")
    assert_same_run(folder / "other", folder / "run")
    assert not torch.equal(output(folder / "run"), output(folder / "whole"))


def test_a_schedule_that_depends_on_the_number_of_steps_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe(tmp_path, {"schedule": "cosine", "final": 0.1}), tmp_path / "run")
    train(tiny_recipe(tmp_path, {"schedule": "cosine", "final": 0.1, "steps": 24}), tmp_path / "run")
    told = (
        "schedule: cosine is that of 24 steps from now on; the rate's factor, 0.115 at step 12, is 0.55 at the next one"
    )
    assert told in capsys.readouterr().err
    assert [round(line["rate_factor"], 2) for line in read_metrics(tmp_path / "run")][5:7] == [0.12, 0.43]


def test_what_was_said_of_the_finished_model_is_set_aside(folder: Path) -> None:
    run = folder / "run"
    evaluate(run)
    scores = (run / "evaluation.json").read_text()
    train(tiny_recipe(folder, evaluate={"split": "test", "max_tokens": 7}), run)
    assert (run / "evaluation.json").read_text() == scores, "the model is the same"
    train(tiny_recipe(folder, {"steps": 13}), run)
    assert not (run / "evaluation.json").exists()
    assert (run / "earlier" / "step-000012" / "evaluation.json").read_text() == scores


def test_settings_that_need_no_step_leave_the_model_alone(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "run" / "model").rglob("*")}
    train(tiny_recipe(folder, {"log_every": 5}, device="cpu"), folder / "run")
    assert {path: path.stat().st_mtime_ns for path in (folder / "run" / "model").rglob("*")} == before
    assert RunFolder(folder / "run").recipe().main_phases[0].phase.log_every == 5


def test_defaults_that_are_written_out_are_no_change(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_recipe(folder, {"warmup": 0, "schedule": "constant"}, seed=0), folder / "run")
    assert "goes on" not in capsys.readouterr().err
    assert len(read_history(folder / "run")) == 1


REFUSED: list[tuple[Callable[[Path], dict[str, Any]], str]] = [
    (lambda _: {"seed": 1}, "seed: 0 -> 1; new parameters and the order of examples follow from it"),
    (lambda _: {"train": {"tasks": ["speech"]}}, r"train.tasks: \[.*; what the run has learnt came of those examples"),
    (
        lambda _: {"train": {"optimizer": "adamw"}},
        "train.optimizer: adam -> adamw; the state that was saved is of that",
    ),
    (lambda _: {"train": {"clip": 0.5}}, "train.clip: 1.0 -> 0.5; the steps that were taken, were taken with it"),
    (lambda _: {"train": {"steps": 11}}, "train.steps: 12 -> 11; the run has taken 12 already"),
    (
        lambda _: {"pretrain": {"text": {"steps": 1}}},
        "pretrain.text: none -> .*; what came later rests on those towers",
    ),
    (lambda _: {"split": "test"}, "split: train -> test; what the run has learnt came of those examples"),
    (lambda _: {"spec": {**spec(), "name": "other"}}, "spec: name: tiny -> name: other; the checkpoints are of that"),
    (lambda at: {"start_from": str(at / "whole")}, "start_from: none -> .*; the run began there"),
]


@pytest.mark.parametrize(("change", "told"), REFUSED, ids=[told.split(":")[0] for _, told in REFUSED])
def test_what_must_not_change_is_refused_with_the_reason(
    made: Path, change: Callable[[Path], dict[str, Any]], told: str
) -> None:
    before = {path: path.read_bytes() for path in (made / "run").rglob("*") if path.is_file()}
    given = change(made)
    fix = r"\); choose another --out, and in its recipe `start_from: .*run` to begin with what this run has learnt"
    with pytest.raises(ZippkitError, match=rf"holds the run of another recipe \({told}.*{fix}"):
        train(tiny_recipe(made, given.pop("train", None), **given), made / "run")
    assert {path: path.read_bytes() for path in (made / "run").rglob("*") if path.is_file()} == before


def test_all_that_is_refused_is_told_at_once(made: Path) -> None:
    with pytest.raises(ZippkitError) as told:
        train(tiny_recipe(made, {"clip": 0.5, "steps": 30}, seed=3), made / "run")
    assert all(f"{key}: " in str(told.value) for key in ("seed", "train.clip"))
    assert "train.steps" not in str(told.value), "that one may change"


def test_a_run_without_its_checkpoints_cannot_go_on_and_says_so(folder: Path) -> None:
    shutil.rmtree(folder / "run" / "checkpoints")
    train(tiny_recipe(folder), folder / "run")
    for _ in range(2):
        with pytest.raises(
            ZippkitError, match="is finished, and its checkpoints are gone, so it cannot go on; choose anot"
        ):
            train(tiny_recipe(folder, {"steps": 24}), folder / "run")
        assert load(folder / "run").spec.name == "tiny"


def test_a_run_of_an_older_version_goes_on(folder: Path) -> None:
    """Without a history, and with a model that does not tell what was planned."""
    run = RunFolder(folder / "run")
    (run.path / HISTORY).unlink()
    manifest = read_checkpoint_manifest(run.model)
    del manifest["planned"]
    (run.model / "manifest.json").write_text(json.dumps(manifest))
    before = (run.model / "manifest.json").stat().st_mtime_ns
    train(tiny_recipe(folder), run.path)
    assert (run.model / "manifest.json").stat().st_mtime_ns == before
    train(tiny_recipe(folder, {"steps": 24}), run.path)
    assert_same_run(run.path, folder / "whole")
    assert [line["changes"] for line in read_history(run.path)] == [{"train.steps": [12, 24]}]


def test_a_kill_at_any_moment_of_going_on_loses_nothing(folder: Path) -> None:
    evaluate(folder / "run")
    recipe, number = tiny_recipe(folder, {"steps": 24}), 0
    while True:
        run = folder / str(number)
        shutil.copytree(folder / "run", run)
        if not killed(recipe, run, changes=number):
            break
        assert load(run).spec.name == "tiny", "the earlier model, until the other one is there"
        assert len(list(run.rglob("evaluation.json"))) == 1
        train(recipe, run)
        assert_same_run(run, folder / "whole")
        assert [line["changes"] for line in read_history(run)] == [{}, {"train.steps": [12, 24]}]
        number += 1 if number < 12 else 11
    assert number > 40


def test_patience_that_grew_goes_on_where_it_had_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(
        tmp_path / "data",
        {"train": examples(24, 0), "dev": examples(6, 2), "test": examples(6, 1)},
        {"text": train_words(["four", "one", "three", "two"])},
    )

    def recipe(patience: int, **train: Any) -> Any:
        how = {"evaluate_every": 1, "generate": False, "best": {"metric": "loss", "mode": "max"}, "patience": patience}
        return tiny_recipe(tmp_path, train, validation=how)

    run = RunFolder(tmp_path / "run")
    train(recipe(2), run.path)
    (stopped,) = run.reached(recipe(2)).values()
    assert stopped < 12
    assert f"train: stopped after step {stopped} of 12; loss was best after step" in capsys.readouterr().err
    train(recipe(2, steps=20), run.path)
    assert run.reached(recipe(2)) == {"train": stopped}, "more steps alone do not make it patient"
    train(recipe(50, steps=20), run.path)
    assert run.reached(recipe(2)) == {"train": 20}
    train(recipe(50, steps=20), tmp_path / "whole")
    assert torch.equal(
        *(saved(path)["model links.speech_to_text.0.output.weight"] for path in (run.path, tmp_path / "whole"))
    )


def test_the_last_stage_goes_on_and_one_that_is_over_does_not(tmp_path: Path) -> None:
    few = {"steps": 2, "save_every": 1, "log_every": 1}

    def recipe(first: int, second: int) -> Any:
        return tiny_recipe(tmp_path, [{**few, "name": "one", "steps": first}, {**few, "name": "two", "steps": second}])

    train(recipe(2, 2), tmp_path / "run")
    with pytest.raises(ZippkitError, match=r"\(train\[0\].steps: 2 -> 3; the next stage has begun where this one"):
        train(recipe(3, 2), tmp_path / "run")
    with pytest.raises(ZippkitError, match=r"\(train\[1\].steps: 2 -> 1; the run has taken 2 already\)"):
        train(recipe(2, 1), tmp_path / "run")
    train(recipe(2, 4), tmp_path / "run")
    train(recipe(2, 4), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole", "train.two")
    assert [line["changes"] for line in read_history(tmp_path / "run")] == [{}, {"train[1].steps": [2, 4]}]


def test_differences_reach_into_sections_and_lists_of_sections() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": [{"f": 1}, {"f": 2}]}
    new = {"a": 1, "b": {"c": [1, 3], "d": {}}, "e": [{"f": 1}, {"f": 3}]}
    assert [str(change) for change in differences(old, new)] == [
        "b.c: [1, 2] -> [1, 3]",
        "b.d: none -> {}",
        "e[1].f: 2 -> 3",
    ]
    assert list(differences(old, old)) == []
    assert refusal(Change(("pretrain", "text", "save_every"), 1, 2), {}) == ""
    assert "rests on those towers" in refusal(Change(("pretrain", "text", "batch_size"), 1, 2), {})


def test_a_recipe_that_somebody_broke_is_said(folder: Path) -> None:
    (folder / "run" / "recipe.yaml").write_text("a: [")
    with pytest.raises(ZippkitError, match=r"recipe.yaml of the run is not one that zippkit wrote"):
        train(tiny_recipe(folder), folder / "run")
    (folder / "run" / "recipe.yaml").write_text(yaml.safe_dump({"name": "x"}))
    with pytest.raises(ZippkitError, match=r"recipe.yaml of the run is not one that zippkit wrote"):
        train(load_recipe(folder / "recipe.yaml"), folder / "run")
