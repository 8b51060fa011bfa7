"""Trackers: told what metrics.jsonl is told, going on with the same run, and never the end of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

import zippkit.training.trackers.tracking
from helpers.interrupts import interrupt, on_step
from helpers.tiny_runs import tiny_recipe, write_recipe
from helpers.tiny_runs import zippkit as command
from zippkit.errors import SpecError
from zippkit.spec.kinds import Strict
from zippkit.spec.recipe import Recipe
from zippkit.system.extras import MissingExtraError, is_installed
from zippkit.testing import check_tracker
from zippkit.training.metrics import read_metrics
from zippkit.training.trackers.base import TrackedRun, Tracker
from zippkit.training.trackers.tensorboard import TensorBoard
from zippkit.training.trainer import InterruptedRunError, train

pytestmark = pytest.mark.slow


class Told(Tracker):
    """Keeps what it is told, in a list for all starts."""

    told: ClassVar[list[tuple[Any, ...]]] = []

    def start(self, run: TrackedRun, state: Mapping[str, Any]) -> dict[str, Any]:
        self.told.append(("start", run.name, dict(state)))
        return {"id": state.get("id", "first")}

    def begin(self, phase: str, step: int) -> None:
        self.told.append(("begin", phase, step))

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        self.told.append(("log", phase, step, dict(values)))

    def finish(self) -> None:
        self.told.append(("finish",))


class Broken(Told):
    """Raises where its settings say."""

    class Config(Strict):
        at: str

    def start(self, run: TrackedRun, state: Mapping[str, Any]) -> dict[str, Any]:
        self._fail("start")
        return {}

    def begin(self, phase: str, step: int) -> None:
        self._fail("begin")

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        self._fail("log")

    def finish(self) -> None:
        self._fail("finish")

    def _fail(self, where: str) -> None:
        if self.config.at == where:
            raise ConnectionError("no route to host\nand more")


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both trackers, registered."""
    found = {"told": Told, "broken": Broken}
    for module in (zippkit.training.trackers.tracking, sys.modules["zippkit.spec.tracking"]):
        for name in ("implementation", "config_class"):
            if original := getattr(module, name, None):

                def look(group: Any, kind: str, original: Any = original, name: str = name) -> Any:
                    known = found.get(kind)
                    return (
                        original(group, kind) if known is None else known if name == "implementation" else known.Config
                    )

                monkeypatch.setattr(module, name, look)
    Told.told.clear()


def test_a_tracker_is_told_what_metrics_are_told(kinds: None, tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, track=["told"], pretrain={"text": {"steps": 2, "batch_size": 4}}), tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    told = [each for each in Told.told if each[0] == "log"]
    assert [each[1:3] for each in told] == [(line["phase"], line["step"]) for line in lines]
    for (*_, values), line in zip(told, lines, strict=True):
        losses = {f"losses/{name}": value for name, value in line.pop("losses").items()}
        assert values == losses | {name: line[name] for name in line.keys() - {"phase", "step"}}
    others = [each for each in Told.told if each[0] != "log"]
    assert others == [("start", "tiny", {}), ("begin", "pretrain.text", 0), ("begin", "train", 0), ("finish",)]
    assert not (tmp_path / "run" / "tensorboard").exists(), "it was not named"
    Told.told.clear()
    train(tiny_recipe(tmp_path, track=["told"], pretrain={"text": {"steps": 2, "batch_size": 4}}), tmp_path / "run")
    assert not Told.told, "nothing is told of a run that is finished already"


def test_a_run_that_goes_on_continues_the_tracker_s_run(
    kinds: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, track=["told"])
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        on_step(patch, 6, interrupt)
        train(recipe, tmp_path / "run")
    assert Told.told[-1] == ("finish",), "stopped by a signal, it ends in order"
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"told": {"id": "first"}}
    Told.told.clear()
    train(recipe, tmp_path / "run")
    assert Told.told[:2] == [("start", "tiny", {"id": "first"}), ("begin", "train", 7)]


@pytest.mark.parametrize("at", ["start", "begin", "log", "finish"])
def test_a_tracker_that_raises_costs_one_warning(
    kinds: None, tmp_path: Path, at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe(tmp_path, track=[{"broken": {"at": at}}, "told"]), tmp_path / "run")
    assert (tmp_path / "run" / "model").exists()
    told = "warning: tracker broken failed (ConnectionError: no route to host); the run goes on without it\n"
    assert capsys.readouterr().err.count("tracker broken") == 1
    assert [each for each in Told.told if each[0] == "log"], "the others are told as ever"
    del told


@pytest.mark.parametrize(
    ("track", "message"),
    [
        (["tensorbord"], "track[0]: no tracker of kind 'tensorbord' is registered; did you mean 'tensorboard'?"),
        ([{"wandb": {"projet": "x"}}], "track[0].wandb.projet: unknown key 'projet'; did you mean 'project'?"),
        (["tensorboard", {"mlflow": {"tags": 3}}], "track[1].mlflow.tags: expected a mapping, got 3"),
        (["tensorboard", "tensorboard"], "track[1]: 'tensorboard' is named already; name each kind once"),
        ([{"wandb": {}, "mlflow": {}}], "track[0]"),
    ],
)
def test_a_tracker_that_nobody_knows_is_refused(tmp_path: Path, track: list[Any], message: str) -> None:
    with pytest.raises(SpecError) as told:
        tiny_recipe(tmp_path, track=track)
    assert message in str(told.value)


def test_a_tracker_whose_package_is_missing_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        MissingExtraError, match=r"Weights & Biases needs wandb, which is not installed: .*zippkit\[wandb\]"
    ):
        train(tiny_recipe(tmp_path, track=["wandb"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_none_are_told_where_none_is_wanted(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, track=[]), tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert command("trackers").stdout.split()[::3] == ["mlflow", "tensorboard", "wandb"]
    assert write_recipe(tmp_path)


def test_tensorboard_is_a_tracker(tmp_path: Path) -> None:
    check_tracker(TensorBoard, {}, tmp_path)


def test_one_that_does_not_go_on_is_found(tmp_path: Path) -> None:
    class Forgets(Told):
        def start(self, run: TrackedRun, state: Mapping[str, Any]) -> dict[str, Any]:
            return {"id": str(len(self.told))}

    with pytest.raises(AssertionError, match="returned another state"):
        check_tracker(Forgets, {}, tmp_path)


def resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: list[Any]) -> Recipe:
    """A recipe whose run was stopped after seven steps, and went on."""
    recipe = tiny_recipe(tmp_path, track=track)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        on_step(patch, 6, interrupt)
        train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run")
    return recipe


@pytest.mark.skipif(not is_installed("wandb"), reason="needs zippkit[wandb]")
@pytest.mark.filterwarnings("default")
def test_wandb_writes_a_folder_to_sync_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    resumed(tmp_path, monkeypatch, [{"wandb": {"project": "tiny", "tags": ["a"]}}])
    said = capsys.readouterr()
    assert said.out == "" and "failed" not in said.err
    kept = json.loads((tmp_path / "run" / "trackers.json").read_text())
    folders = sorted(path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert folders and {name.rsplit("-", 1)[1] for name in folders} == {kept["wandb"]["id"]}, "one run, two starts"


@pytest.mark.skipif(not is_installed("mlflow"), reason="needs zippkit[mlflow]")
@pytest.mark.filterwarnings("default")
def test_mlflow_keeps_every_value_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    resumed(tmp_path, monkeypatch, [{"mlflow": {"tags": {"who": "me"}}}])
    assert "failed" not in capsys.readouterr().err
    client = MlflowClient(tracking_uri=(tmp_path / "run" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("zippkit")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tiny" and run.info.status == "FINISHED" and run.data.tags["who"] == "me"
    kept = {each.step: each.value for each in client.get_metric_history(run.info.run_id, "train/losses/total")}
    assert kept == {line["step"]: pytest.approx(line["losses"]["total"]) for line in read_metrics(tmp_path / "run")}
