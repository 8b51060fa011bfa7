"""Evaluation while training: the numbers are those of `zippkit eval`, the best is kept, and a kill changes nothing."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import zippkit
from helpers.interrupts import assert_same_run, interrupt, killed, on_step
from helpers.tiny_runs import examples, spec, tiny_recipe
from zippkit.checkpoint.manifest import read_checkpoint_manifest
from zippkit.composition import load
from zippkit.data.dataset import Dataset
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.text import train_words
from zippkit.errors import CheckpointError, DataError, SpecError, ZippkitError
from zippkit.evaluation.evaluate import evaluate
from zippkit.plan.graph import build_graph
from zippkit.spec.dev_evaluation import Best, Validation
from zippkit.spec.recipe import Recipe
from zippkit.spec.task import Task
from zippkit.training.dev_data import DevSource, dev_data
from zippkit.training.dev_scores import dev_scores
from zippkit.training.dev_watch import Standing
from zippkit.training.metrics import read_metrics
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import InterruptedRunError, train

pytestmark = pytest.mark.slow

WORDS = ("four", "one", "three", "two")


def write_data(folder: Path, n_dev: int = 10) -> Dataset:
    splits = {"train": examples(24, 0), "dev": examples(n_dev, 2), "test": examples(6, 1)}
    return write_dataset(folder, splits, {"text": train_words(WORDS)})


def dev_recipe(folder: Path, how: dict[str, Any] | None = None, train: dict[str, Any] | None = None) -> Recipe:
    """Evaluates every other step of twelve."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        write_data(folder / "data")
    validation = {"evaluate_every": 2, "batch_size": 4, "max_tokens": 6, "best": {"metric": "loss"}} | (how or {})
    return tiny_recipe(folder, train, validation=validation, evaluate={"split": "dev", "max_tokens": 6})


def dev_lines(run: Path) -> dict[int, dict[str, float]]:
    return {line["step"]: line["validation"] for line in read_metrics(run) if "validation" in line}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its data and its run without a stop; its best checkpoint is the one with the highest loss."""
    folder = tmp_path_factory.mktemp("dev")
    train(dev_recipe(folder, WORST, ROUGH), folder / "run")
    return folder


ROUGH = {"learning_rate": 0.02, "save_every": 5}
"""The loss goes down, and sometimes up."""
WORST = {"best": {"metric": "loss", "mode": "max"}}
"""So the best one is not the last one, on any machine."""


def test_it_is_done_every_so_many_steps_and_at_the_last(tmp_path: Path) -> None:
    train(dev_recipe(tmp_path, {"evaluate_every": 5}), tmp_path / "run")
    lines = dev_lines(tmp_path / "run")
    assert list(lines) == [5, 10, 12]
    assert lines[5].keys() == {"loss", "text_loss", "text_wer", "text_retention", "speech_retention"}


def test_without_it_nothing_of_it_is_there(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path), tmp_path / "run")
    assert not dev_lines(tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()
    assert "validation" not in read_checkpoint_manifest(tmp_path / "run" / "model")


def test_training_is_the_same_with_it(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(whole / "data")
    train(tiny_recipe(tmp_path, ROUGH), tmp_path / "run")
    found, expected = (load(path / "run").model.state_dict() for path in (whole, tmp_path))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_numbers_are_those_that_eval_finds(whole: Path) -> None:
    found, last = evaluate(whole / "run"), dev_lines(whole / "run")[12]
    (task,) = found.written
    assert last["text_wer"] == task.wer
    for row in found.retention:
        assert last[f"{row.tower}_retention"] == pytest.approx(row.after, rel=1e-6)


def test_the_loss_is_the_mean_over_tokens_one_example_at_a_time(whole: Path) -> None:
    recipe, zipped, dataset = dev_recipe(whole), load(whole / "run"), Dataset.open(whole / "data")
    nats, n_tokens = 0.0, 0
    with torch.no_grad():
        for example in (dataset.split("dev")[i] for i in range(10)):
            words = dataset.text_tokenizer("text").encode(str(example.items["text"]))
            row = [zippkit.Segment("speech", example.items["speech"], loss=False), zippkit.Segment("text", words)]
            batch = zipped.collate([row])
            nats += float(zipped.loss(zipped.model.eval()(batch), batch)["text"]) * (len(words) + 1)
            n_tokens += len(words) + 1
    assert dev_lines(whole / "run")[12]["loss"] == pytest.approx(nats / n_tokens, rel=1e-5)
    del recipe


def test_a_limit_counts_examples_of_each_task(whole: Path) -> None:
    zipped, dataset = load(whole / "run"), Dataset.open(whole / "data")
    tasks = [Task.parse("speech -> text")]

    def scores(**how: Any) -> dict[str, float]:
        dev = dev_data(
            Validation(evaluate_every=1, **how), [DevSource(dataset, "dev", tasks)], build_graph(zipped.spec)
        )
        return dev_scores(zipped, dev)

    assert scores(limit=10) == scores()
    assert scores(limit=3) != scores()
    assert scores(generate=False).keys() == {"loss", "text_loss", "text_retention", "speech_retention"}
    assert scores(generate=False, retention=False).keys() == {"loss", "text_loss"}
    assert scores(batch_size=3)["text_wer"] == scores()["text_wer"]


def test_it_leaves_the_model_s_mode_and_what_is_drawn_alone(whole: Path) -> None:
    zipped = load(whole / "run")
    dev = dev_data(
        Validation(evaluate_every=1),
        [DevSource(Dataset.open(whole / "data"), "dev", [Task.parse("speech -> text")])],
        build_graph(zipped.spec),
    )
    zipped.model.train()
    before = torch.random.get_rng_state()
    dev_scores(zipped, dev)
    assert zipped.model.training and zipped.model.tower("speech").training
    assert not zipped.model.tower("text").training, "frozen as a whole"
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_best_is_kept_apart_and_becomes_the_model_where_it_is_asked_for(whole: Path, tmp_path: Path) -> None:
    losses = {step: line["loss"] for step, line in dev_lines(whole / "run").items()}
    best = max(losses, key=lambda step: losses[step])
    assert best != 12, "otherwise this test says nothing"
    (folder,) = RunFolder(whole / "run").best("train").iterdir()
    assert folder.name == f"step-{best:06d}"
    (tmp_path / "data").symlink_to(whole / "data")
    train(dev_recipe(tmp_path, {"model": "best", **WORST}, ROUGH), tmp_path / "run")
    chosen, kept, last = (load(path).model.state_dict() for path in (tmp_path / "run", folder, whole / "run"))
    assert all(torch.equal(chosen[name], tensor) for name, tensor in kept.items())
    assert not all(torch.equal(chosen[name], tensor) for name, tensor in last.items())
    assert read_checkpoint_manifest(tmp_path / "run" / "model")["step"] == best
    assert [task.wer for task in evaluate(tmp_path / "run").written] == [dev_lines(tmp_path / "run")[best]["text_wer"]]


def test_a_best_checkpoint_that_is_damaged_is_said(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    run = RunFolder(tmp_path / "copy" / "run")
    shutil.rmtree(run.model)
    (folder,) = run.best("train").iterdir()
    (folder / "links.safetensors").write_bytes(b"")
    recipe = dev_recipe(tmp_path / "copy", {"model": "best", **WORST}, ROUGH)
    run.rewrite(recipe)
    with pytest.raises(CheckpointError, match=r"links.safetensors: differs from its hash"):
        train(recipe, run.path)


def test_it_stops_where_it_becomes_no_better(tmp_path: Path) -> None:
    train(dev_recipe(tmp_path, {"patience": 2, "evaluate_every": 1}, {**ROUGH, "steps": 60}), tmp_path / "run")
    losses = [line["loss"] for line in dev_lines(tmp_path / "run").values()]
    assert len(losses) < 60
    best = losses.index(min(losses))
    assert len(losses) == best + 3, "two more after the best"
    assert RunFolder(tmp_path / "run").checkpoints("train")[-1].name == f"step-{len(losses):06d}"
    assert read_checkpoint_manifest(tmp_path / "run" / "model")["step"] == len(losses)


@pytest.mark.parametrize("number", [0, 1, 4, 5, 7])
def test_a_stopped_run_goes_on_with_the_same_lines_best_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    how = {"patience": 2, "evaluate_every": 1, "model": "best"}
    recipe = dev_recipe(tmp_path, how, {**ROUGH, "steps": 60})
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        on_step(patch, number, interrupt)
        train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert_same_best(tmp_path / "run", tmp_path / "whole")


def assert_same_best(run: Path, whole: Path) -> None:
    found, expected = (list(RunFolder(path).best("train").iterdir()) for path in (run, whole))
    assert [folder.name for folder in found] == [folder.name for folder in expected]
    pairs = ((found[0], expected[0]), (run, whole))
    for states in ([load(path).model.state_dict() for path in pair] for pair in pairs):
        assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_a_run_that_is_killed_between_two_changes_of_its_folder_has_the_same_best(tmp_path: Path) -> None:
    recipe = dev_recipe(tmp_path, {"patience": 2, "model": "best"}, {**ROUGH, "steps": 10})
    train(recipe, tmp_path / "whole")
    number, n_killed = 14, 0
    while killed(recipe, tmp_path / str(number), changes=number):
        train(recipe, tmp_path / str(number))
        assert_same_run(tmp_path / str(number), tmp_path / "whole")
        assert_same_best(tmp_path / str(number), tmp_path / "whole")
        number, n_killed = number + 9, n_killed + 1
    assert n_killed > 5


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"best": {"metric": "text_wre"}},
            "best.metric: no metric 'text_wre' is computed; did you mean 'text_wer'?",
        ),
        ({"best": {"metric": "speech_wer"}}, "no metric 'speech_wer' is computed; did you mean"),
        ({"best": {"metric": "text_wer"}, "generate": False}, "no metric 'text_wer' is computed"),
        ({"best": None, "patience": 3}, "validation.patience: expected `best: {metric: ...}` with it"),
        ({"best": None, "model": "best"}, "validation.model: expected `best: {metric: ...}` with it"),
        ({"tasks": ["speach -> text"]}, "no tower is called 'speach'"),
        ({"evaluate_evry": 3}, "unknown key 'evaluate_evry'; did you mean 'evaluate_every'?"),
    ],
)
def test_what_is_never_computed_is_refused_by_name(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as told:
        dev_recipe(tmp_path, how)
    assert message in str(told.value)


def test_what_only_the_data_can_tell_is_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation.split: .*data has no split 'dve'; expected one of train, dev"):
        train(dev_recipe(tmp_path, {"split": "dve"}), tmp_path / "run")
    both = {**spec(), "links": [*spec()["links"], {**spec()["links"][0], "from": "text", "into": "speech"}]}
    heard = {"tasks": ["text -> speech"], "best": {"metric": "speech_wer"}}
    recipe = tiny_recipe(tmp_path, spec=both, validation={"evaluate_every": 2, **heard})
    with pytest.raises(DataError, match=r"validation.best.metric: no metric 'speech_wer' is computed; did you mean"):
        train(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "data")
    splits = {"train": examples(24, 0), "dev": examples(3, 2, longest=40), "test": examples(6, 1)}
    write_dataset(tmp_path / "data", splits, {"text": train_words(WORDS)})
    tight = spec()
    tight["towers"]["speech"]["config"]["max_len"] = 24
    with pytest.raises(DataError, match=r"validation: .*dev\.\w+: example .* more than the 24 that the tower takes"):
        train(tiny_recipe(tmp_path, spec=tight, validation={"evaluate_every": 2}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_value_that_is_not_finite_is_never_the_best() -> None:
    best = Best(metric="loss")
    standing = Standing().after(best, 2, math.nan)
    assert (standing.step, standing.since) == (None, 1)
    standing = standing.after(best, 4, 3.0).after(best, 6, math.nan).after(best, 8, 3.0)
    assert (standing.step, standing.value, standing.since) == (4, 3.0, 2), "as good is not better"
    assert Standing(step=1, value=0.5).after(Best(metric="loss", mode="max"), 2, 0.6).step == 2


def test_a_run_that_never_had_a_best_ends_with_its_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zippkit.training.dev_watch.dev_scores", lambda *_: {"loss": math.nan})
    train(dev_recipe(tmp_path, {"model": "best"}), tmp_path / "run")
    assert read_checkpoint_manifest(tmp_path / "run" / "model")["step"] == 12
    with pytest.raises(ZippkitError, match="no metric"):
        dev_data(
            Validation(evaluate_every=1, best=Best(metric="los")),
            [DevSource(Dataset.open(tmp_path / "data"), "dev", [])],
            build_graph(load(tmp_path / "run").spec),
        )


def test_a_sequence_of_targets_is_read_where_it_comes_to_text(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    both = {**spec(), "links": [*spec()["links"], {**spec()["links"][0], "from": "text", "into": "speech"}]}
    how = {"evaluate_every": 6, "max_tokens": 6, "best": {"metric": "text_wer"}}
    task = {"tasks": ["speech -> [text, speech]"]}
    scored = {"split": "dev", "max_tokens": 6}
    train(tiny_recipe(tmp_path, task, spec=both, validation=how, evaluate=scored), tmp_path / "run")
    last = dev_lines(tmp_path / "run")[12]
    assert last.keys() == {"loss", "text_loss", "speech_loss", "text_wer", "text_retention", "speech_retention"}
    (score,) = evaluate(tmp_path / "run").written
    assert last["text_wer"] == score.wer
