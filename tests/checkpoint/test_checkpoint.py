"""Checkpoints: they stand alone, go around to the bit, and whatever is wrong with one is a CheckpointError."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import zippkit
from helpers.compositions import link, make, make_spec, tower
from zippkit.checkpoint.checkpoint import Checkpoint
from zippkit.checkpoint.filling import restore
from zippkit.checkpoint.reading import read_checkpoint
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.checkpoint.writing import write_checkpoint
from zippkit.composition import Composition, load
from zippkit.errors import CheckpointError, WriteError, ZippkitError
from zippkit.model.weights import write_tensors
from zippkit.plan.parts import CHECKPOINT_MANIFEST
from zippkit.spec.standalone import difference, spec_text

LINKS = [link("speech", "text", every=1)]


def zipped() -> Composition:
    towers = {"text": tower(1, 8, freeze=True), "speech": tower(2, 8, 30, {"max_len": None}, input_projection={})}
    return make(towers, LINKS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    zipped().save(tmp_path / "model")
    return tmp_path / "model"


def test_a_composition_goes_around_to_the_bit(folder: Path) -> None:
    before, after = zipped(), load(folder)
    assert spec_text(after.spec) == spec_text(before.spec)
    assert after.graph.towers == before.graph.towers, "max_len: null among them"
    state = after.model.state_dict()
    assert state.keys() == before.model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.model.state_dict().items())
    frozen = {name for name, parameter in after.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in before.model.named_parameters() if not parameter.requires_grad}


def test_a_tower_that_was_written_is_named_in_a_spec(tmp_path: Path) -> None:
    module = zipped().model.tower("speech")
    write_tower(tmp_path / "tower", module, "decoder")
    spec = make_spec({"speech": {"kind": "decoder", "weights": str(tmp_path / "tower")}})
    assert spec.towers["speech"].settings == module.config
    loaded = zippkit.compile(spec).model.tower("speech").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in module.state_dict().items())


def cut(folder: Path) -> None:
    file = folder / "links.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def flip(folder: Path) -> None:
    file = folder / "links.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def empty(folder: Path) -> None:
    (folder / "links.safetensors").write_bytes(b"")


def lose_weights(folder: Path) -> None:
    (folder / "links.safetensors").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / CHECKPOINT_MANIFEST).unlink()


def put_pickle(folder: Path) -> None:
    (folder / "links.safetensors").write_bytes(pickle.dumps({"a": 1}))
    rehash(folder)


def rehash(folder: Path) -> None:
    """Make the manifest agree with whatever is there, as somebody would who means harm."""
    manifest = json.loads((folder / CHECKPOINT_MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / CHECKPOINT_MANIFEST).write_text(json.dumps(manifest))


def change_spec(folder: Path) -> None:
    text = (folder / "spec.yaml").read_text()
    (folder / "spec.yaml").write_text(text.replace("n_layers: 2", "n_layers: 3"))


def change_spec_and_hash(folder: Path) -> None:
    change_spec(folder)
    rehash(folder)


def break_spec_and_hash(folder: Path) -> None:
    (folder / "spec.yaml").write_text("name: [")
    rehash(folder)


def other_links_and_hash(folder: Path) -> None:
    write_tensors(folder / "links.safetensors", {"links.speech_to_text.0.gate": torch.zeros(2)})
    rehash(folder)


def lose_tower(folder: Path) -> None:
    (folder / "towers" / "speech" / "model.safetensors").unlink()


def cut_tower(folder: Path) -> None:
    file = folder / "towers" / "speech" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def folder_instead(folder: Path) -> None:
    lose_weights(folder)
    (folder / "links.safetensors").mkdir()


def manifest_says(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / CHECKPOINT_MANIFEST).write_text(text)

    write.__name__ = f"manifest {text}"
    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "links.safetensors: differs from its hash in manifest.json; cut short or changed"),
        (flip, "links.safetensors: differs from its hash"),
        (empty, "links.safetensors: differs from its hash"),
        (lose_weights, "links.safetensors is missing"),
        (lose_tower, "towers/speech/model.safetensors is missing"),
        (cut_tower, "towers/speech/model.safetensors: differs from its hash"),
        (folder_instead, "links.safetensors is missing"),
        (lose_manifest, "not a checkpoint (manifest.json is missing)"),
        (put_pickle, "links.safetensors: not a whole safetensors file"),
        (other_links_and_hash, "does not fit ZippedModel: missing"),
        (change_spec, "spec.yaml: differs from its hash"),
        (change_spec_and_hash, "does not fit ZippedModel: missing towers.speech.layers.2"),
        (break_spec_and_hash, "not valid YAML"),
        (manifest_says("{"), "not JSON"),
        (manifest_says("[]"), "format [], expected 2"),
        (manifest_says('{"format": 1, "files": {}}'), "format 1, expected 2"),
        (manifest_says('{"format": 2}'), "tells no hash of spec.yaml, or nothing of towers"),
        (manifest_says('{"format": 2, "files": {}, "towers": {}}'), "tells no hash of spec.yaml"),
        (manifest_says('{"format": 2, "files": {"spec.yaml": ""}, "towers": 1}'), "or nothing of towers"),
        (shutil.rmtree, "not a checkpoint (manifest.json is missing)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_checkpoint_is_told(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError) as failure:
        load(folder)
    assert message in str(failure.value)
    assert str(folder) in str(failure.value)


def test_a_checkpoint_of_another_composition_changes_nothing(folder: Path) -> None:
    other = make({"text": tower(1, 8), "speech": tower(2, 8, 30)}, LINKS)
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"a checkpoint of another composition: .* there, .* here"):
        restore(other.model, read_checkpoint(folder), other.spec, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.model.state_dict().items())


def test_what_makes_two_specs_the_same_composition() -> None:
    towers = {"text": tower(1, 8), "speech": tower(2, 8)}
    assert difference(make_spec(towers, LINKS), make_spec(towers, LINKS)) == ""
    written_out = {"text": tower(1, 8, config={"norm_eps": 1e-5}), "speech": tower(2, 8)}
    assert difference(make_spec(towers, LINKS), make_spec(written_out, LINKS)) == ""
    assert "n_layers" in difference(make_spec(towers, LINKS), make_spec(towers | {"speech": tower(3, 8)}, LINKS))
    assert difference(make_spec(towers), make_spec(towers, LINKS))
    assert difference(make_spec(towers, LINKS), make_spec(towers, [*LINKS, link("text", "speech", every=1)]))


def test_only_a_checkpoint_is_written_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("all of it")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / CHECKPOINT_MANIFEST).write_text('{"format_version": 1, "files": {}}')
    (tmp_path / "file").write_text("all of it")
    for place in ("thesis", "data", "file"):
        with pytest.raises(CheckpointError):
            zipped().save(tmp_path / place)
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "all of it"
    assert (tmp_path / "data" / CHECKPOINT_MANIFEST).exists()
    other = make({"text": tower(1, 8)})
    other.save(folder)
    assert list(load(folder).graph.towers) == ["text"]
    (tmp_path / "empty").mkdir()
    other.save(tmp_path / "empty")
    assert load(tmp_path / "empty").spec.name == "tiny"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "empty", "file", "model", "thesis"]


def test_a_write_that_fails_leaves_the_earlier_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / CHECKPOINT_MANIFEST).read_text()

    def full(path: Path, tensors: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("zippkit.checkpoint.shards.write_tensors", full)
    with pytest.raises(WriteError, match=f"{folder.name}: cannot be written: No space left"):
        make({"text": tower(1, 8)}).save(folder)
    assert (folder / CHECKPOINT_MANIFEST).read_text() == before
    assert set(load(folder).graph.towers) == {"text", "speech"}


def test_the_optimizer_and_more_go_around(tmp_path: Path) -> None:
    made = zipped()
    optimizer = {"a:step": torch.tensor(3.0), "a:exp_avg": torch.ones(2, dtype=torch.bfloat16)}
    checkpoint = Checkpoint(made.spec, made.model.state_dict(), optimizer, {"step": 7, "frozen": {"b": "c"}})
    write_checkpoint(tmp_path / "step", checkpoint)
    read = read_checkpoint(tmp_path / "step")
    assert read.extra == {"step": 7, "frozen": {"b": "c"}}
    assert read.optimizer.keys() == optimizer.keys()
    assert all(torch.equal(read.optimizer[name], tensor) for name, tensor in optimizer.items())
    assert read.optimizer["a:exp_avg"].dtype == torch.bfloat16


def test_what_is_loaded_as_a_composition(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load(tmp_path / "nowhere")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "tiny"}))
    with pytest.raises(CheckpointError, match="this run is not finished; start its recipe again to go on"):
        load(tmp_path)
    write_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(ZippkitError):
        load(tmp_path / "model.safetensors")
