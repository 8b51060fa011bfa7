"""Towers by reference: frozen ones stay where they came from, and whatever stands there is known by its hash."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import zippkit
import zippkit.checkpoint.references
from helpers.compositions import link, make, make_spec, randomise, tower
from helpers.tiny_runs import copied, finished_run, tiny_recipe
from zippkit.checkpoint.checkpoint import Checkpoint
from zippkit.checkpoint.reading import read_checkpoint
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.checkpoint.writing import write_checkpoint
from zippkit.composition import Composition, load
from zippkit.errors import CheckpointError
from zippkit.model.weights import read_tensors, write_tensors
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow

LINKS = [link("speech", "text", every=1), link("text", "speech", every=1)]


def write_source(folder: Path, seed: int = 0) -> Path:
    """A pre-trained text tower."""
    module = make({"text": tower(2, 8)}).model.tower("text")
    randomise(module, seed)
    write_tower(folder, module, "decoder")
    return folder


def zipped(source: Path, **more: Any) -> Composition:
    """Text from ``source``, frozen unless said otherwise, and a speech tower that is trained."""
    text = tower(2, 8, weights=str(source), **{"freeze": True, **more})
    made = zippkit.compile(make_spec({"text": text, "speech": tower(2, 8, 30)}, LINKS))
    randomise(made.model.links)
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


def entries(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text())["towers"])


def sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def assert_equal(one: Composition, other: Composition) -> None:
    states = one.model.state_dict(), other.model.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_a_frozen_tower_is_named_and_not_copied(source: Path, tmp_path: Path) -> None:
    made = zipped(source)
    random = torch.get_rng_state()
    made.save(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), random), "whoever saves may be in the middle of training"
    text = entries(tmp_path / "model")["text"]
    assert text["source"] == str(source)
    assert text["files"] == {"model.safetensors": sha(source / "model.safetensors")}
    files = {path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*.safetensors")}
    assert files == {"links.safetensors", "towers/speech/model.safetensors"}
    assert {name.split(".")[0] for name in read_tensors(tmp_path / "model" / "links.safetensors")} == {"links"}
    assert load(tmp_path / "model").spec.towers["text"].weights is None
    assert_equal(load(tmp_path / "model"), made)


def test_a_copy_stands_alone_byte_for_byte(source: Path, tmp_path: Path) -> None:
    made = zipped(source)
    made.save(tmp_path / "model", copy_towers=True)
    digest = sha(source / "model.safetensors")
    shutil.rmtree(source)
    (tmp_path / "model").rename(tmp_path / "moved")
    assert sha(tmp_path / "moved" / "towers" / "text" / "model.safetensors") == digest
    assert_equal(load(tmp_path / "moved"), made)
    assert str(tmp_path) not in (tmp_path / "moved" / "spec.yaml").read_text()


def test_a_single_file_is_a_source_too(source: Path, tmp_path: Path) -> None:
    made = zipped(source / "model.safetensors")
    made.save(tmp_path / "named")
    made.save(tmp_path / "copy", copy_towers=True)
    assert entries(tmp_path / "named")["text"]["source"] == str(source / "model.safetensors")
    (source / "model.safetensors").rename(tmp_path / "other_name.safetensors")
    assert_equal(load(tmp_path / "copy"), made)
    assert_equal(load(tmp_path / "named", towers={"text": tmp_path / "other_name.safetensors"}), made)


def test_half_precision_and_shards_are_kept_as_they_are(source: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in read_tensors(source).items()}
    names = sorted(tensors)
    (source / "model.safetensors").unlink()
    (source / "tower.json").unlink()  # It holds the hash of the file that was.
    index = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(index.values()):
        write_tensors(source / part, {name: tensors[name] for name in names if index[name] == part})
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    made = zipped(source)
    made.save(tmp_path / "named")
    made.save(tmp_path / "copy", copy_towers=True)
    assert_equal(load(tmp_path / "named"), made)
    digests = {part: sha(source / part) for part in set(index.values())}
    shutil.rmtree(source)
    assert {part: sha(tmp_path / "copy" / "towers" / "text" / part) for part in digests} == digests
    assert_equal(load(tmp_path / "copy"), made)


def test_what_is_not_as_in_its_source_is_saved_itself(source: Path, tmp_path: Path) -> None:
    moved = zipped(source)
    with torch.no_grad():
        moved.model.get_parameter("towers.text.norm.weight")[0] += 1e-6
    rules = {"layers.*": "freeze", "embed*": "freeze", "norm*": "train"}
    for name, made in {
        "moved": moved,
        "trained": zipped(source, freeze=False),
        "half": zipped(source, freeze=rules),
    }.items():
        made.save(tmp_path / name)
        assert entries(tmp_path / name)["text"] == {"folder": "towers/text"}
        assert_equal(load(tmp_path / name), made)


def test_another_tower_is_refused_by_name_and_hash(source: Path, tmp_path: Path) -> None:
    zipped(source).save(tmp_path / "model")
    right = sha(source / "model.safetensors")
    write_source(source, seed=1)
    wrong = sha(source / "model.safetensors")
    with pytest.raises(CheckpointError) as failure:
        load(tmp_path / "model")
    told = str(failure.value)
    assert f"tower 'text' is another one at {source}: SHA-256 {wrong[:16]}" in told
    assert f"expected {right[:16]}" in told
    assert f'zippkit.load("{tmp_path / "model"}", towers={{"text": PATH}})' in told


def test_a_tower_that_moved_is_found_where_the_caller_says(source: Path, tmp_path: Path) -> None:
    made = zipped(source)
    made.save(tmp_path / "model")
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"tower 'text' is kept at {source}, where nothing is; expected weights"):
        load(tmp_path / "model")
    assert_equal(load(tmp_path / "model", towers={"text": tmp_path / "elsewhere"}), made)
    other = write_source(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=rf"tower 'text' is another one at {other}: SHA-256"):
        load(tmp_path / "model", towers={"text": other})
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CheckpointError, match=r"'text' is kept at .*nothing, which cannot be read: .* expected model"):
        load(tmp_path / "model", towers={"text": tmp_path / "nothing"})
    with pytest.raises(CheckpointError, match=r"no tower 'txet' that is kept elsewhere; did you mean 'text'"):
        load(tmp_path / "model", towers={"txet": other})
    with pytest.raises(CheckpointError, match="no tower 'speech' that is kept elsewhere"):
        load(tmp_path / "model", towers={"speech": other})


def test_all_towers_that_are_missing_are_told_at_once(tmp_path: Path) -> None:
    sources = {name: write_source(tmp_path / name, seed) for seed, name in enumerate(("text", "speech"))}
    towers = {name: tower(2, 8, weights=str(path), freeze=True) for name, path in sources.items()}
    zippkit.compile(make_spec(towers, LINKS)).save(tmp_path / "model")
    for path in sources.values():
        shutil.rmtree(path)
    with pytest.raises(CheckpointError) as failure:
        load(tmp_path / "model")
    assert "tower 'text' is kept" in str(failure.value)
    assert "tower 'speech' is kept" in str(failure.value)
    assert 'towers={"text": PATH, "speech": PATH}' in str(failure.value)


def test_weights_that_are_loaded_otherwise_than_before_are_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of a tower's code may read the same bytes otherwise."""
    zipped(source).save(tmp_path / "model")
    cls = type(zipped(source).model.tower("text"))
    original = cls.load_weights

    def other(self: Any, path: Path) -> None:
        original(self, path)
        randomise(self.norm, 5)

    monkeypatch.setattr(cls, "load_weights", other)
    with pytest.raises(CheckpointError, match=r"tower 'text' is loaded from .*source with other values than when"):
        load(tmp_path / "model")


def test_saving_over_what_was_loaded_loses_nothing(source: Path, tmp_path: Path) -> None:
    made = zipped(source)
    for copy_towers in (True, False):
        made.save(tmp_path / "a", copy_towers=copy_towers)
        load(tmp_path / "a").save(tmp_path / "a")
        assert_equal(load(tmp_path / "a"), made)
    made.save(tmp_path / "a", copy_towers=True)
    digest = sha(source / "model.safetensors")
    load(tmp_path / "a").save(tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(source)
    assert sha(tmp_path / "b" / "towers" / "text" / "model.safetensors") == digest
    assert_equal(load(tmp_path / "b"), made)


def test_equal_compositions_make_equal_files(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        zipped(source).save(tmp_path / name, copy_towers=True)
    contents = [{p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*") if p.is_file()} for n in ("a", "b")]
    assert contents[0] == contents[1]


def test_a_tower_under_two_names_is_written_once(tmp_path: Path) -> None:
    made = make({"left": tower(1, 8), "right": tower(1, 8)})
    left = made.model.tower("left").state_dict()
    state = {f"towers.{name}.{key}": tensor for name in ("left", "right") for key, tensor in left.items()}
    write_checkpoint(tmp_path / "model", Checkpoint(made.spec, state))
    assert entries(tmp_path / "model") == {"left": {"folder": "towers/left"}, "right": {"same_as": "left"}}
    assert [path.name for path in (tmp_path / "model" / "towers").iterdir()] == ["left"]
    read = read_checkpoint(tmp_path / "model")
    assert read.tensors.keys() == state.keys()
    assert read.sources["right"] == read.sources["left"] == tmp_path / "model" / "towers" / "left"
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in state.items())
    write_checkpoint(tmp_path / "again", read)
    assert entries(tmp_path / "again") == entries(tmp_path / "model")


@pytest.mark.parametrize("freeze", [True, False])
def test_towers_of_one_weight_go_around(tmp_path: Path, freeze: bool) -> None:
    towers = {"right": {"share_with": "left"}, "left": tower(1, 8, freeze=freeze)}
    made = zippkit.compile(make_spec(towers, [link("left", "right", every=1)]))
    made.save(tmp_path / "a")
    found = load(tmp_path / "a")
    assert_equal(found, made)
    assert found.model.tower("left") is found.model.tower("right")
    found.save(tmp_path / "b", copy_towers=True)
    assert_equal(load(tmp_path / "b"), made)
    assert len(list((tmp_path / "b" / "towers").iterdir())) == 1


def test_a_projection_that_sites_share_is_written_once(tmp_path: Path) -> None:
    shared = link("speech", "text", every=1, projection={"depth": 2, "share": "sites"})
    made = make({"text": tower(2, 8), "speech": tower(2, 8)}, [shared])
    made.save(tmp_path / "model")
    with safe_open(tmp_path / "model" / "links.safetensors", framework="pt") as file:
        written = {name for name in file.keys() if ".projection." in name}  # noqa: SIM118 (it is not a mapping)
    assert {name.split(".projection.")[0] for name in written} == {"links.speech_to_text.0"}
    assert_equal(load(tmp_path / "model"), made)


def test_what_belongs_to_no_single_tower_stands_with_the_links(tmp_path: Path) -> None:
    host = tower(1, 8, freeze=True, extend_vocabulary={"sound": 6})
    image = tower(1, 8, 40, input_projection={})
    compared = {"from": "image", "into": "text", "width": 4}
    spec = {"name": "all", "towers": {"text": host, "image": image}, "contrastive": [compared]}
    both = [link(a, b, every=1, projection={"share": "directions"}) for a, b in (("text", "image"), ("image", "text"))]
    made = zippkit.compile(CompositionSpec.model_validate({**spec, "links": both}))
    randomise(made.model)
    made.save(tmp_path / "model")
    parts = {name.split(".")[0] for name in read_tensors(tmp_path / "model" / "links.safetensors")}
    assert parts == {"links", "input_projections", "vocabularies", "contrastive"}
    assert_equal(load(tmp_path / "model"), made)


def test_adapters_stand_apart(tmp_path: Path) -> None:
    made = make({"text": tower(1, 8), "speech": tower(1, 8)}, LINKS)
    adapters = {"adapters.text.layers_0.up": torch.ones(2), "adapters.text.layers_0.down": torch.zeros(2)}
    write_checkpoint(tmp_path / "model", Checkpoint(made.spec, made.model.state_dict() | adapters))
    assert read_tensors(tmp_path / "model" / "adapters.safetensors").keys() == adapters.keys()
    read = read_checkpoint(tmp_path / "model").tensors
    assert read.keys() == made.model.state_dict().keys() | adapters.keys()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, "towers.text: expected one entry for each tower of the spec"),
        ({}, "towers.text: expected source, files and tensors"),
        ({"source": "x", "files": {}, "tensors": ""}, "towers.text: expected source, files and tensors"),
        ({"same_as": "txet"}, "towers.text: the same as 'txet', which is not there"),
        ({"same_as": "text"}, "towers.text: the same as 'text', which is not there"),
        ({"folder": "towers/other"}, "towers/other"),
    ],
)
def test_a_manifest_that_does_not_tell_where_a_tower_is(source: Path, tmp_path: Path, entry: Any, message: str) -> None:
    zipped(source).save(tmp_path / "model")
    file = tmp_path / "model" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["towers"]["text"] = entry
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError) as failure:
        load(tmp_path / "model")
    assert message in str(failure.value)


def test_a_run_folder_can_be_moved_and_names_its_own_towers(tmp_path: Path) -> None:
    run = copied(finished_run(), tmp_path / "copy")
    expected = load(finished_run())
    last = RunFolder(run).checkpoints("train")[-1]
    assert entries(run / "model")["text"]["source"] == "../towers/text"
    assert entries(last)["text"]["source"] == "../../../towers/text"
    assert not (last / "towers" / "text").exists()
    assert_equal(load(run), expected)
    assert_equal(load(last), expected)
    write_tensors(run / "towers" / "text" / "model.safetensors", expected.model.tower("speech").state_dict())
    with pytest.raises(CheckpointError, match=rf"tower 'text' is another one at {run}/towers/text"):
        load(run)
    assert_equal(load(finished_run()), expected)


def test_saving_costs_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen towers are written and looked at once for a run, however often it is saved."""
    looked: list[str] = []

    def watch(spec: Any, source: Path) -> Any:
        looked.append(source.name)
        return original(spec, source)

    original = zippkit.checkpoint.references.refer
    monkeypatch.setattr(zippkit.checkpoint.references, "refer", watch)
    counts = []
    for steps in (2, 12):
        looked.clear()
        train(tiny_recipe(tmp_path, {"steps": steps, "save_every": 1}), tmp_path / f"run{steps}")
        counts.append(len(looked))
    assert counts[0] == counts[1]
    for folder in (*RunFolder(tmp_path / "run12").checkpoints("train"), tmp_path / "run12" / "model"):
        assert [path.name for path in (folder / "towers").iterdir()] == ["speech"]
