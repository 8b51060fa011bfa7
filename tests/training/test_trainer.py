"""Training: it learns, it resumes to the bit however it was stopped, and it stops by itself before harm is done."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import zippkit.training.phase_run
from helpers.interrupts import assert_same_run, before_each_step, interrupt, killed, on_step
from helpers.tiny_runs import command, finished_run, spec, tiny_recipe, write_data, write_recipe
from helpers.tiny_runs import zippkit as in_a_process
from zippkit.batch.batch import Batch
from zippkit.checkpoint.frozen_hashes import frozen_tensors
from zippkit.checkpoint.reading import read_checkpoint
from zippkit.checkpoint.references import refer
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.checkpoint.writing import write_checkpoint
from zippkit.composition import Composition, load
from zippkit.errors import CheckpointError, DataError, ZippkitError
from zippkit.evaluation.evaluate import evaluate
from zippkit.loading import load_recipe
from zippkit.model.weights import TOWER_FILE, fingerprint, read_tensors, write_tensors
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.recipe import Recipe
from zippkit.system.files import LOCK
from zippkit.training.metrics import read_metrics
from zippkit.training.run_folder import RunFolder
from zippkit.training.step import TrainingStep, build_step
from zippkit.training.trainer import InterruptedRunError, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe and its data, and of the run of its twelve steps without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    train(tiny_recipe(folder), folder / "run")
    return folder


def recipe_of(folder: Path) -> Recipe:
    return tiny_recipe(folder)


def test_it_learns() -> None:
    lines = [line for line in read_metrics(finished_run()) if line["phase"] == "train" and line["step"] <= 30]
    assert lines[-1]["losses"]["total"] < 0.9 * lines[0]["losses"]["total"]


def test_a_run_keeps_what_it_needs() -> None:
    run = RunFolder(finished_run())
    assert load(run.path).spec.name == "tiny"
    steps = {phase: [folder.name for folder in run.checkpoints(phase)] for phase in ("pretrain.text", "train")}
    assert steps == {phase: ["step-000090", "step-000100"] for phase in steps}, "the last two"
    assert set(run.tokenizers()) == {"text"}
    assert set(run.read_json("seconds.json")) >= {"pre-train text", "train"}
    assert [path.name for path in run.path.rglob(".*")] == [LOCK], "nothing half written"


def test_a_pre_trained_tower_goes_into_the_composition_and_stays_as_it_is() -> None:
    run = RunFolder(finished_run())
    tower = read_tensors(run.tower("text"))
    model = load(run.path).model.tower("text").state_dict()
    assert fingerprint(tower.items()) == fingerprint(model.items())
    first = read_checkpoint(run.checkpoints("pretrain.text")[0]).tensors
    assert not torch.equal(first["towers.text.norm.weight"], tower["norm.weight"]), "it was not frozen then"


def test_frozen_tensors_are_those_of_the_first_step(whole: Path) -> None:
    recipe = recipe_of(whole)
    fresh = zippkit.compile(recipe.spec, seed=recipe.seed)
    last = load(whole / "run").model.state_dict()
    frozen = frozen_tensors(fresh.spec, fresh.model)
    assert {name.split(".")[1] for name in frozen} == {"text"}
    assert all(torch.equal(last[name], tensor) for name, tensor in frozen.items())
    moved = {name for name, tensor in fresh.model.state_dict().items() if not torch.equal(last[name], tensor)}
    assert {"towers.speech.embed_tokens.weight", "links.speech_to_text.0.output.weight"} <= moved


@pytest.mark.parametrize("number", [0, 3, 4, 10])
def test_a_stopped_run_resumes_to_the_bit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with (
        monkeypatch.context() as patch,
        pytest.raises(InterruptedRunError, match=f"stopped after step {number + 1} of train"),
    ):
        on_step(patch, number, interrupt)
        train(recipe_of(whole), tmp_path)
    assert RunFolder(tmp_path).checkpoints("train")[-1].name == f"step-{number + 1:06d}"
    assert not RunFolder(tmp_path).model.exists()
    train(recipe_of(whole), tmp_path)
    assert_same_run(tmp_path, whole / "run")
    assert load(tmp_path).model.state_dict().keys() == load(whole / "run").model.state_dict().keys()


def test_signals_are_left_as_they_were(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    on_step(monkeypatch, 2, interrupt)
    with pytest.raises(InterruptedRunError):
        train(recipe_of(whole), tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_ends_at_once(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(model: ZippedModel) -> None:
        interrupt(model)
        interrupt(model)

    on_step(monkeypatch, 5, twice)
    # A shell starts its background jobs with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(recipe_of(whole), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert RunFolder(tmp_path).checkpoints("train")[-1].name == "step-000004"


def test_an_interrupted_process_says_so_and_exits_with_130(whole: Path, tmp_path: Path) -> None:
    steps = "train.steps=5000"
    arguments = [
        "train",
        whole / "recipe.yaml",
        "--out",
        tmp_path / "run",
        steps,
        "train.save_every=1000",
        "train.log_every=1",
    ]
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not read_metrics(tmp_path / "run") and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "start again to go on from there" in told
    assert "Traceback" not in told
    (checkpoint,) = RunFolder(tmp_path / "run").checkpoints("train")
    assert read_checkpoint(checkpoint).extra["step"] == len(read_metrics(tmp_path / "run"))


def assert_killed_run_was_mended(run: Path, whole: Path) -> None:
    for phase in ("pretrain.text", "train"):
        assert_same_run(run, whole, phase)
    told = [[(line["phase"], line["step"], line["losses"]) for line in read_metrics(path)] for path in (run, whole)]
    assert told[0] == told[1]


def saving(folder: Path, steps: int) -> Recipe:
    """A recipe that spends most of its time on saving."""
    phase = {"steps": steps, "save_every": 1, "log_every": 1}
    return tiny_recipe(folder, phase, pretrain={"text": phase})


def test_a_run_that_is_killed_again_and_again_resumes_to_the_bit(tmp_path: Path) -> None:
    recipe = saving(tmp_path, 30)
    train(recipe, tmp_path / "whole")
    moments = random.Random(0)
    kills = [killed(recipe, tmp_path / "run", seconds=moments.uniform(0.02, 0.12)) for _ in range(8)]
    assert kills[0], "it takes longer than that"
    train(recipe, tmp_path / "run")
    assert_killed_run_was_mended(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_is_killed_between_two_changes_of_its_folder_resumes_to_the_bit(
    tmp_path: Path,
) -> None:
    recipe = saving(tmp_path, 5)
    train(recipe, tmp_path / "whole")
    # There are 168; the first ones make the folder, and every nineteenth of the others meets all kinds of them.
    for number in (*range(5), *range(5, 168, 19)):
        run = tmp_path / str(number)
        assert killed(recipe, run, changes=number)
        train(recipe, run)
        assert_killed_run_was_mended(run, tmp_path / "whole")


def test_a_finished_run_is_left_alone(whole: Path) -> None:
    files = [path for path in (whole / "run").rglob("*") if path.is_file() and path.name != LOCK]
    before = {path: path.stat().st_mtime_ns for path in files}
    train(recipe_of(whole), whole / "run")
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_a_loss_that_is_not_finite_stops_the_run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.no_grad()
    def poison(model: ZippedModel) -> None:
        model.get_parameter("links.speech_to_text.0.value.weight")[0, 0] = float("nan")

    recipe = recipe_of(whole)
    on_step(monkeypatch, 6, poison)
    with pytest.raises(ZippkitError, match=r"train: step 7 is not finite \(text nan.*its batch: 0-\d\d\d, ") as failure:
        train(recipe, tmp_path)
    checkpoints = RunFolder(tmp_path).checkpoints("train")
    assert [folder.name for folder in checkpoints] == ["step-000004"]
    assert f"the last good checkpoint is {checkpoints[0]}" in str(failure.value)
    assert all(tensor.isfinite().all() for tensor in read_checkpoint(checkpoints[0]).tensors.values())
    assert [line["step"] for line in read_metrics(tmp_path)] == [3, 4, 6]


def test_the_batch_of_a_loss_that_is_not_finite_is_named(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the host looks only steps later."""
    batches: list[tuple[str, ...]] = []
    steps: list[int] = []

    def build(*arguments: Any) -> TrainingStep:
        step = build_step(*arguments)

        def spoilt(batch: Batch) -> dict[str, torch.Tensor]:
            losses = step(batch)
            steps.append(len(steps))
            return {**losses, "total": losses["total"] * float("inf")} if len(steps) == 2 else losses

        return spoilt

    def collate(self: Any, examples: Any, multiple: int, ids: tuple[str, ...], multimodal: bool, pack: None) -> Batch:
        batches.append(ids)
        return original(self, examples, multiple, ids, multimodal, pack)

    original = Composition.collate
    monkeypatch.setattr(zippkit.training.phase_run, "build_step", build)
    monkeypatch.setattr(Composition, "collate", collate)
    with pytest.raises(ZippkitError, match="there is no checkpoint yet") as failure:
        train(recipe_of(whole), tmp_path)
    assert len(steps) == 3
    assert str(failure.value).endswith(f"its batch: {', '.join(batches[1])}")
    assert "step 2 is not finite" in str(failure.value)


def test_a_frozen_tensor_that_moves_stops_the_run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "towers.text.layers.0.mlp.up_proj.weight"

    @torch.no_grad()
    def move(model: ZippedModel) -> None:
        model.get_parameter(name)[0, 0] += 1e-7

    on_step(monkeypatch, 5, move)
    with pytest.raises(ZippkitError, match=name):
        train(recipe_of(whole), tmp_path)
    assert [folder.name for folder in RunFolder(tmp_path).checkpoints("train")] == ["step-000004"]
    assert not RunFolder(tmp_path).model.exists()


def test_the_proof_goes_back_to_the_first_step(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint whose frozen tower was changed from outside, hashes and all, does not go on."""
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        on_step(patch, 4, interrupt)
        train(recipe_of(whole), tmp_path)
    last = RunFolder(tmp_path).checkpoints("train")[-1]
    checkpoint, tower = read_checkpoint(last), RunFolder(tmp_path).tower("text")
    weights = read_tensors(tower)
    weights["norm.weight"][0] += 1
    change_tower(tower, weights)
    reference = refer(checkpoint.spec.towers["text"], tower)
    assert reference is not None
    write_checkpoint(last, replace(checkpoint, references={"text": reference}), root=tmp_path)
    with pytest.raises(ZippkitError, match=r"towers\.text\.norm\.weight has moved"):
        train(recipe_of(whole), tmp_path)


def change_tower(tower: Path, weights: dict[str, torch.Tensor]) -> None:
    """Other weights, and no hash that tells."""
    write_tensors(tower / "model.safetensors", weights)
    about = json.loads((tower / TOWER_FILE).read_text())
    del about["files"]
    (tower / TOWER_FILE).write_text(json.dumps(about))


def weights_that_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, freeze: bool) -> Recipe:
    """A run of a pre-trained tower whose weights change while it is interrupted."""
    composition = spec()
    composition["towers"]["text"]["freeze"] = freeze
    recipe = tiny_recipe(tmp_path, pretrain={"text": {"steps": 2, "batch_size": 4}}, spec=composition)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError, match="of train"):
        before_each_step(
            patch, lambda n_steps, model: interrupt(model) if n_steps == 3 and "speech" in model.towers else None
        )
        train(recipe, tmp_path / "run")
    tower = RunFolder(tmp_path / "run").tower("text")
    change_tower(tower, {name: tensor + 1 for name, tensor in read_tensors(tower).items()})
    return recipe


def test_weights_that_changed_since_the_start_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = weights_that_change(tmp_path, monkeypatch, freeze=False)
    train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_frozen_weights_that_changed_since_the_start_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = weights_that_change(tmp_path, monkeypatch, freeze=True)
    with pytest.raises(CheckpointError, match=r"tower 'text' is another one at .*towers/text: SHA-256 .*, expected "):
        train(recipe, tmp_path / "run")


def test_another_recipe_in_the_same_folder_is_refused(whole: Path) -> None:
    before = (whole / "run" / "recipe.yaml").read_text()
    other = recipe_of(whole).model_copy(update={"seed": 1})
    with pytest.raises(ZippkitError, match=r"holds the run of another recipe \(.*\); choose another --out"):
        train(other, whole / "run")
    longer = write_recipe(whole, {"learning_rate": 0.5}).read_text()
    with pytest.raises(ZippkitError, match=r"train.learning_rate: 0.01 -> 0.5; the steps that were taken"):
        train(Recipe.model_validate(yaml.safe_load(longer) | {"data": str(whole / "data")}), whole / "run")
    assert (whole / "run" / "recipe.yaml").read_text() == before


def test_a_folder_that_is_not_a_run_is_refused(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    for out in (tmp_path, tmp_path / "thesis.tex", whole / "data"):
        there = sorted(tmp_path.rglob("*")), sorted((whole / "data").rglob("*"))
        with pytest.raises(ZippkitError, match="exists and is not a run; choose another --out"):
            train(recipe_of(whole), out)
        assert (sorted(tmp_path.rglob("*")), sorted((whole / "data").rglob("*"))) == there
    assert (tmp_path / "thesis.tex").read_text() == "all of it"


def test_a_run_goes_on_from_another_working_directory(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    train(RunFolder(whole / "run").recipe(), Path("copy"))
    relative = yaml.safe_load((tmp_path / "copy" / "recipe.yaml").read_text())["data"]
    assert not Path(relative).is_absolute(), "so that run and data move together"
    assert (tmp_path / "copy" / relative).samefile(whole / "data")
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    run = RunFolder(Path("../copy"))
    run.keep_recipe(run.recipe())


def test_a_sequence_past_the_longest_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    short = load_recipe(write_recipe(tmp_path), ["spec.towers.speech.config.max_len=9"])
    with pytest.raises(DataError, match=r"example 0-\d\d\d has 14 speech tokens, and \d+ of 24 .* more than the 9"):
        train(short, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"split": "trian"}, {"data": Path("nowhere")}])
def test_mistakes_are_found_before_the_folder_is_made(whole: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        train(recipe_of(whole).model_copy(update=change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_changed_since_the_start_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        on_step(patch, 1, interrupt)
        train(recipe, tmp_path / "run")
    for change, told in (
        ({"words": ["zero", "one", "three", "two"]}, "tokenizers/text.json"),
        ({"n": 25}, "train.arrow"),
    ):
        (tmp_path / "data").rename(tmp_path / f"before {told.replace('/', ' ')}")
        write_data(tmp_path / "data", **change)
        with pytest.raises(DataError, match=f"{told}.* changed since .*run was started; choose another --out"):
            train(recipe, tmp_path / "run")


def test_a_checkpoint_of_something_else_is_refused(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        on_step(patch, 4, interrupt)
        train(recipe_of(whole), tmp_path / "run")
    last = RunFolder(tmp_path / "run").checkpoints("train")[-1]
    load(whole / "run").save(last)
    with pytest.raises(CheckpointError, match="not a checkpoint of a run"):
        train(recipe_of(whole), tmp_path / "run")


def test_a_million_steps_are_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (999_999, 1_000_000, 200):
        run.checkpoint("train", step).mkdir(parents=True)
    (tmp_path / "checkpoints" / "train" / ".step-000300.1.zippkit-tmp").mkdir()
    assert [path.name for path in run.checkpoints("train")] == ["step-000200", "step-999999", "step-1000000"]
    run.drop_old_checkpoints("train")
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "train").iterdir()) == [
        "step-1000000",
        "step-999999",
    ]


def _flip(file: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_broken_model_of_a_finished_run_is_said(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    train(recipe, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    (file, *_) = sorted(run.model.glob("towers/*/model.safetensors"))
    _flip(file)
    with pytest.raises(CheckpointError, match=r"differs from its hash.*step-000012 is whole: remove .*model, and"):
        train(recipe, run.path)
    shutil.rmtree(run.model)
    train(recipe, run.path)
    assert load(run.path).spec.name == "tiny"


def test_a_damaged_checkpoint_names_the_older_one_that_is_whole(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        on_step(patch, 9, interrupt)
        train(recipe_of(whole), tmp_path)
    older, newest = RunFolder(tmp_path).checkpoints("train")
    _flip(newest / "links.safetensors")
    with pytest.raises(CheckpointError, match=f"the older checkpoint {older.name} is whole: remove {newest} to go on"):
        train(recipe_of(whole), tmp_path)
    shutil.rmtree(newest)
    train(recipe_of(whole), tmp_path)
    assert_same_run(tmp_path, whole / "run")


def test_a_damaged_tower_of_a_run_is_said(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, pretrain={"text": {"steps": 2, "batch_size": 4}})
    train(recipe, tmp_path / "run")
    tower = RunFolder(tmp_path / "run").tower("text")
    _flip(tower / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tower.json beside it says .*; remove .*text, and the tower is pre-tr"):
        train(recipe, tmp_path / "run")
    with pytest.raises(CheckpointError, match="if it is meant to be this one, remove `files`"):
        read_tensors(tower)
    change_tower(tower, read_tensors(tower, check=False))
    assert read_tensors(tower)


def test_a_second_process_is_kept_out_of_a_run(whole: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").locked("trains"):
        seen = in_a_process("train", whole / "recipe.yaml", "--out", tmp_path / "run")
    assert seen.returncode == 2
    assert re.search(rf"run: process {os.getpid()} on \S+ trains there; wait for it", seen.stderr)
    assert "Traceback" not in seen.stderr


def test_a_folder_of_something_else_gets_no_lock(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ZippkitError, match="exists and is not a run"):
        train(recipe_of(whole), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_tower_that_no_task_uses_needs_no_data(tmp_path: Path) -> None:
    """A spec of three towers on data of two; a misfit of every modality is told at once."""
    three = spec()
    three["towers"]["image"] = copy.deepcopy(three["towers"]["speech"])
    three["links"].append({**three["links"][0], "from": "image"})
    recipe = tiny_recipe(tmp_path, {"steps": 1}, spec=three)
    train(recipe, tmp_path / "run")
    found = evaluate(tmp_path / "run")
    assert [task.task for task in found.tasks] == ["speech -> text"]
    assert [each.tower for each in found.retention] == ["text", "speech"]
    for name in ("text", "speech"):
        three["towers"][name]["config"]["vocab_size"] = 6
        three["towers"][name]["frame"] = {"begin": 4, "end": 5}
    with pytest.raises(DataError) as told:
        train(tiny_recipe(tmp_path, {"tasks": ["image -> text"]}, spec=three), tmp_path / "other")
    assert [said in str(told.value) for said in ("text has 7 token ids", "speech has 8", "called 'image'")] == [
        True
    ] * 3
    assert str(told.value).count("\n") >= 3


@pytest.mark.parametrize("what", ["run", "data", "weights"])
def test_a_run_goes_on_after_it_or_its_inputs_were_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    composition = spec()
    composition["towers"]["speech"]["weights"] = "speech"
    recipe_file = write_recipe(tmp_path / "in", spec=composition)
    speech = zippkit.compile(tiny_recipe(tmp_path / "plain").spec).model.tower("speech")
    write_tower(tmp_path / "in" / "speech", speech, "decoder")
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        on_step(patch, 4, interrupt)
        train(load_recipe(recipe_file), run)
    changed = yaml.safe_load(recipe_file.read_text())
    if what == "run":
        (tmp_path / "other").mkdir()
        run = run.rename(tmp_path / "other" / "run")
    elif what == "data":
        (tmp_path / "in" / "data").rename(tmp_path / "in" / "moved")
        changed["data"] = "moved"
    else:
        (tmp_path / "in" / "speech").rename(tmp_path / "in" / "moved")
        changed["spec"]["towers"]["speech"]["weights"] = "moved"
    recipe_file.write_text(yaml.safe_dump(changed, sort_keys=False))
    recipe = load_recipe(recipe_file)
    train(recipe, run)
    train(recipe, tmp_path / "whole")
    assert_same_run(run, tmp_path / "whole")
    assert RunFolder(run).recipe() == recipe.model_copy(update={"spec": RunFolder(run).recipe().spec})
    assert RunFolder(run).recipe().data.resolve() == recipe.data.resolve()


def test_a_path_to_something_else_is_another_recipe(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    write_data(tmp_path / "copy" / "other", n=25)
    changed = yaml.safe_load((tmp_path / "copy" / "recipe.yaml").read_text()) | {"data": "other"}
    (tmp_path / "copy" / "recipe.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    before = (tmp_path / "copy" / "run" / "recipe.yaml").read_bytes()
    with pytest.raises(ZippkitError, match=r"another recipe \(data: ../data -> ../other; what the run has learnt"):
        train(load_recipe(tmp_path / "copy" / "recipe.yaml"), tmp_path / "copy" / "run")
    assert (tmp_path / "copy" / "run" / "recipe.yaml").read_bytes() == before
