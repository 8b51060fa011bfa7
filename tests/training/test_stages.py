"""Stages: what is frozen in one rests to the bit, and a run resumes inside and between them."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.interrupts import assert_same_run, before_each_step, interrupt, on_step
from helpers.tiny_runs import tiny_recipe, write_recipe, zippkit
from zippkit.checkpoint.reading import read_checkpoint
from zippkit.composition import compile, load
from zippkit.errors import SpecError, ZippkitError
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.parts import part_of
from zippkit.training.metrics import read_metrics
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import InterruptedRunError, train

pytestmark = pytest.mark.slow

FEW = {"steps": 4, "save_every": 2, "log_every": 2}
STAGES: list[dict[str, Any]] = [
    {**FEW, "name": "link", "freeze": {"towers.speech": True}},
    {**FEW, "name": "whole", "freeze": {"towers.speech": {"layers.*": "freeze", "[!l]*": "train"}}},
    {**FEW, "name": "tower", "freeze": {"links.speech_to_text": True}, "tasks": ["speech"]},
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    train(tiny_recipe(folder, STAGES), folder / "run")
    return folder


def tensors(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load(RunFolder(run).checkpoints(f"train.{stage}")[-1]).model.state_dict()


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {part_of(name) for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_a_stage_moves_what_it_trains_and_nothing_else(whole: Path) -> None:
    run = whole / "run"
    made = tiny_recipe(whole, STAGES)
    start = compile(made.spec, seed=made.seed).model.state_dict()
    link, both, tower = (tensors(run, stage["name"]) for stage in STAGES)
    assert moved(start, link) == {"links.speech_to_text"}
    assert moved(link, both) == {"links.speech_to_text", "towers.speech"}
    assert not [name for name in both if ".speech.layers." in name and not torch.equal(link[name], both[name])]
    assert moved(both, tower) == {"towers.speech"}
    last = load(run).model.state_dict()
    assert all(torch.equal(last[name], tensor) for name, tensor in tower.items())


def test_each_stage_keeps_its_checkpoints_and_its_lines(whole: Path) -> None:
    run = RunFolder(whole / "run")
    labels = [f"train.{stage['name']}" for stage in STAGES]
    assert all([f.name for f in run.checkpoints(label)] == ["step-000002", "step-000004"] for label in labels)
    assert [line["phase"] for line in read_metrics(run.path)] == [label for label in labels for _ in range(2)]
    assert set(labels) <= set(run.read_json("seconds.json"))
    optimizers = [read_checkpoint(run.checkpoints(label)[-1]).optimizer for label in labels]
    steps = {float(tensor) for state in optimizers for name, tensor in state.items() if name.endswith(":step")}
    assert steps == {0.0, 4.0}, "anew for every stage; nothing reaches the towers that read nothing"


@pytest.mark.parametrize("number", [0, 2, 3, 4, 9, 11])
def test_a_stopped_run_resumes_to_the_bit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        counter = count()
        before_each_step(patch, lambda _, model: interrupt(model) if next(counter) == number else None)
        train(tiny_recipe(whole, STAGES), tmp_path)
    train(tiny_recipe(whole, STAGES), tmp_path)
    for stage in STAGES:
        one, other = tensors(tmp_path, stage["name"]), tensors(whole / "run", stage["name"])
        assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
    assert_same_run(tmp_path, whole / "run", f"train.{STAGES[-1]['name']}")


def test_a_part_that_moves_although_its_stage_freezes_it_is_told(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nudge(model: ZippedModel) -> None:
        with torch.no_grad():
            model.get_parameter("towers.speech.norm.weight").add_(1e-3)

    on_step(monkeypatch, 3, nudge)
    with pytest.raises(ZippkitError, match=r"a stage freezes must not change in it: towers.speech.norm.weight moved"):
        train(tiny_recipe(whole, STAGES), tmp_path)


def test_what_a_stage_cannot_mean_is_told_at_once(tmp_path: Path) -> None:
    stages = [
        {"name": "one", "steps": 1, "freeze": {"towers.speach": True}},
        {"name": "one", "steps": 1, "freeze": {"towers.text": False}},
        {"name": "two", "freeze": {"towers.speech": True, "links.speech_to_text": True}, "steps": 1, "tasks": ["txt"]},
    ]
    with pytest.raises(SpecError) as caught:
        tiny_recipe(tmp_path, stages)
    told = [f"{problem.key}: {problem.message}" for problem in caught.value.problems]
    assert told == [
        "train[0].freeze.towers.speach: no such part; did you mean 'towers.speech'?",
        "train[1].name: another stage is called 'one'; stages need names of their own",
        "train[1].freeze.towers.text: the spec freezes it, which the certificates prove of the whole run; expected "
        "towers.text.freeze: false in the spec, and `true` here in the stages in which it rests",
        "train[2].tasks[0]: no tower is called 'txt'; did you mean 'text'?",
        "train[2].freeze: everything is frozen, so there is nothing to train in this stage",
    ]


def test_rules_that_match_nothing_are_told_of_every_stage_before_the_run_starts(tmp_path: Path) -> None:
    stages = [
        {**FEW, "name": "one", "freeze": {"towers.speech": {"layerz.*": "freeze", "*": "train"}}},
        {**FEW, "name": "two", "freeze": {"links.speech_to_text": {"0.*": "freeze"}, "towers.speech": {"*": "freeze"}}},
    ]
    with pytest.raises(ZippkitError) as caught:
        train(tiny_recipe(tmp_path, stages), tmp_path / "run")
    told = str(caught.value).splitlines()
    assert told[0].startswith("train.one: freeze.towers.speech: rule 'layerz.*' matches no parameter")
    assert told[1] == "train.two: everything is frozen, so there is nothing to train in this stage"
    assert not (tmp_path / "run").exists()


def test_plan_and_recipe_tell_of_the_stages(tmp_path: Path) -> None:
    file = write_recipe(tmp_path, STAGES)
    told = zippkit("plan", file).stdout.splitlines()
    assert told[-3:] == [
        "train.link: 4 steps train links.speech_to_text on speech -> text",
        "train.whole: 4 steps train towers.speech, links.speech_to_text on speech -> text",
        "train.tower: 4 steps train towers.speech on speech",
    ]
    filled = yaml.safe_load(zippkit("recipe", file).stdout)["train"]
    assert [stage["name"] for stage in filled] == ["link", "whole", "tower"]
    assert filled[0]["learning_rates"] == {"links.speech_to_text": 0.01}
    assert filled[2]["freeze"] == {"links.speech_to_text": True}
