"""Certificates hold to what the spec freezes, and to the first source of it, through any chain of saves and growth."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import zippkit
from helpers.compositions import link, make, make_spec, randomise, tower
from helpers.tiny_runs import spec, tiny_recipe
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.composition import Composition, load
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.evaluation.certificates import verify
from zippkit.evaluation.evaluate import evaluate
from zippkit.model.weights import read_tensors, write_tensors
from zippkit.training.export import export_tower
from zippkit.training.run_folder import RunFolder
from zippkit.training.starting_point import composition_to_train
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow

LINKS = [link("speech", "text", every=1)]
RULES = {"layers.*": "freeze", "embed*": "freeze", "norm*": "train"}
NORM = "towers.text.norm.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    module = make({"text": tower(2, 8)}).model.tower("text")
    write_tower(tmp_path / "source", module, "decoder")
    return tmp_path / "source"


def composed(source: Path | None, **more: Any) -> Composition:
    weights = {} if source is None else {"weights": str(source)}
    text = tower(2, 8, **weights, **{"freeze": True, **more})
    return zippkit.compile(make_spec({"text": text, "speech": tower(1, 8, 30)}, LINKS))


def failures(made: Composition) -> dict[str, str]:
    return {c.name: c.detail for c in verify(made, only=["C3", "C8"]).certificates if not c.passed}


@torch.no_grad()
def nudge(made: Composition, name: str = NORM) -> None:
    made.model.get_parameter(name).view(-1)[0] += 1e-3


@pytest.mark.parametrize("has_source", [True, False])
def test_a_tower_thawed_by_hand_fails_by_name(source: Path, has_source: bool) -> None:
    made = composed(source if has_source else None)
    assert failures(made) == {}
    made.model.tower("text").requires_grad_(True)
    told = failures(made)
    assert set(told) == {"C3"}
    assert "towers.text.embed_tokens.weight is trainable although the spec freezes it" in told["C3"]


def test_nothing_frozen_is_no_pass_where_the_spec_freezes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = composed(None)
    monkeypatch.setattr("zippkit.checkpoint.frozen_hashes.frozen_tensors", lambda spec, model: {})
    assert failures(made)["C3"] == "the spec freezes text, but nothing is there that is frozen"


@pytest.mark.parametrize("freeze", [True, RULES])
def test_what_has_moved_once_never_passes_again(source: Path, tmp_path: Path, freeze: Any) -> None:
    """A checkpoint of it is no new source: saved, loaded and grown, it still differs from the first one."""
    name = "towers.text.layers.0.mlp.up_proj.weight"
    made = composed(source, freeze=freeze)
    nudge(made, name)
    assert f"{name} has moved" in failures(made)["C3"]
    made.save(tmp_path / "a")
    load(tmp_path / "a").save(tmp_path / "b")
    grown = {**made.spec.model_dump(by_alias=True, exclude_none=True)["towers"], "image": tower(1, 8, 40)}
    grown["text"].pop("weights")
    for again in (load(tmp_path / "b"), load(tmp_path / "b", spec=make_spec(grown, LINKS))):
        told = failures(again)
        assert f"{name} has moved" in told["C3"]
        assert ("C8" in told) == (freeze is True)
    with pytest.raises(CheckpointError, match=rf"differs from its first source in {name}"):
        export_tower(tmp_path / "b", "text", tmp_path / "out")


def test_what_a_spec_freezes_anew_has_its_origin_there(source: Path, tmp_path: Path) -> None:
    trained = composed(source, freeze=False)
    nudge(trained)
    trained.save(tmp_path / "a")
    frozen = make_spec({"text": tower(2, 8, freeze=True), "speech": tower(1, 8, 30)}, LINKS)
    made = load(tmp_path / "a", spec=frozen)
    assert failures(made) == {}
    made.save(tmp_path / "b")
    assert failures(load(tmp_path / "b")) == {}
    rules = load(tmp_path / "b", spec=composed(None, freeze=RULES).spec)
    nudge(rules)
    assert failures(rules) == {}, "the norm is trained now"
    rules.save(tmp_path / "c")
    all_again = load(tmp_path / "c", spec=frozen)
    assert failures(all_again) == {}, "its origin is what was trained"


def test_other_bytes_of_the_same_values_are_not_the_first_source(source: Path, tmp_path: Path) -> None:
    """Once its source is gone, a tower is written anew: the values are the same, the file is not."""
    half = {key: tensor.half() for key, tensor in composed(source).model.tower("text").state_dict().items()}
    write_tensors(source / "model.safetensors", half)
    (source / "tower.json").unlink()  # It holds the hash of the file that was.
    composed(source).save(tmp_path / "a")
    made = load(tmp_path / "a")
    shutil.rmtree(source)
    made.save(tmp_path / "b")
    told = failures(load(tmp_path / "b"))
    assert set(told) == {"C8"}
    assert "text: what was saved differs in bytes from its first source" in told["C8"]


def recipe(folder: Path, source: Path, **more: Any) -> Any:
    """The tiny run with text from a source."""
    made = spec()
    made["towers"]["text"] |= {"weights": str(source), **more.pop("text", {})}
    return tiny_recipe(folder, {"steps": 2}, spec=made, **more)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A text tower for the tiny run."""
    config = {key: value for key, value in spec()["towers"]["text"].items() if key != "freeze"}
    module = zippkit.compile(make_spec({"text": config})).model.tower("text")
    randomise(module)
    write_tower(tmp_path / "words", module, "decoder")
    return tmp_path / "words"


def test_a_run_does_not_start_from_what_has_moved(tmp_path: Path, words: Path) -> None:
    """It used to write the moved tower into the run as its source, so that every certificate held."""
    train(recipe(tmp_path, words), tmp_path / "first")
    moved = load(tmp_path / "first")
    nudge(moved)
    moved.save(tmp_path / "moved")
    second = recipe(tmp_path, words, start_from=str(tmp_path / "moved"))
    with pytest.raises(ZippkitError, match=rf"frozen weights must not change: {NORM} has moved"):
        train(second, tmp_path / "second")
    assert not RunFolder(tmp_path / "second").tower("text").exists()


def test_a_frozen_part_is_its_first_source_s_through_a_chain_of_runs(tmp_path: Path, words: Path) -> None:
    rules = {"text": {"freeze": RULES}}
    for name, start in (("a", None), ("b", "a"), ("c", "b")):
        more = {"start_from": str(tmp_path / start)} if start else {}
        train(recipe(tmp_path, words, **rules, **more), tmp_path / name)
    run = load(tmp_path / "c")
    first = composed_words(words)
    names = [key for key in run.origins.tensors if ".text." in key]
    assert names and NORM not in names
    assert all(torch.equal(run.model.get_parameter(name), first[name]) for name in names)
    assert not torch.equal(run.model.get_parameter(NORM), first[NORM])
    assert failures(run) == {}


def composed_words(words: Path) -> dict[str, torch.Tensor]:
    tensors = read_tensors(words)
    return {f"towers.text.{name}": tensor for name, tensor in tensors.items()}


def test_scores_are_not_taken_of_what_has_moved(tmp_path: Path, words: Path) -> None:
    train(recipe(tmp_path, words), tmp_path / "run")
    moved = load(tmp_path / "run")
    nudge(moved)
    shutil.rmtree(tmp_path / "run" / "model")
    moved.save(tmp_path / "run" / "model")
    with pytest.raises(ZippkitError, match=rf"{NORM} has moved"):
        evaluate(tmp_path / "run")


def test_a_copy_in_the_run_that_is_another_is_told(tmp_path: Path, words: Path) -> None:
    """A run that starts from another keeps that one's frozen towers; what stands there already must be the same."""
    train(recipe(tmp_path, words), tmp_path / "a")
    load(tmp_path / "a").save(tmp_path / "alone", copy_towers=True)
    again, run = recipe(tmp_path, words, start_from=str(tmp_path / "alone")), RunFolder(tmp_path / "b")
    other = zippkit.compile(again.spec, seed=5, load_weights=False).model.tower("text")
    write_tower(run.tower("text"), other, "decoder")
    with pytest.raises(CheckpointError, match=r"b/towers/text: differs from .*alone/towers/text, of which it is a"):
        composition_to_train(again, run)
    shutil.rmtree(run.tower("text"))
    assert composition_to_train(again, run).sources["text"] == run.tower("text")


def test_a_run_warns_once_of_a_tower_that_is_frozen_at_random(
    tmp_path: Path, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "warning: towers.text: the tower is frozen and has no weights, so it keeps its random values; expected"
    random = tiny_recipe(tmp_path, {"steps": 1})
    for _ in range(2):
        train(random, tmp_path / "random")
    assert capsys.readouterr().err.count(told) == 1
    train(tiny_recipe(tmp_path, {"steps": 1}, start_from=str(tmp_path / "random")), tmp_path / "next")
    train(tiny_recipe(tmp_path, {"steps": 1}, pretrain={"text": {"steps": 1}}), tmp_path / "trained")
    train(recipe(tmp_path, words), tmp_path / "sourced")
    assert "warning" not in capsys.readouterr().err
