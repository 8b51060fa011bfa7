"""One tower by itself: a copy of its source where it is frozen, and always something that a spec can name again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import zippkit
from helpers.compositions import link, make, make_spec, randomise, tower
from helpers.tiny_runs import finished_run
from helpers.tiny_runs import zippkit as command
from zippkit.checkpoint.checkpoint import write_tower
from zippkit.composition import load
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.model.weights import read_tensors
from zippkit.training.export import export_tower


def named_again(folder: Path) -> dict[str, torch.Tensor]:
    """The tower of a spec that says nothing but where its weights are."""
    return (
        zippkit.compile(make_spec({"it": {"kind": "decoder", "weights": str(folder)}})).model.tower("it").state_dict()
    )


@pytest.mark.parametrize("name", ["text", "speech"])
def test_a_tower_of_a_run_is_named_in_another_spec(tmp_path: Path, name: str) -> None:
    lines = export_tower(finished_run(), name, tmp_path / "out")
    expected = load(finished_run()).model.tower(name).state_dict()
    found = named_again(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert lines[0].startswith(f"tower {name}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "no temporary folder is left"


def test_a_frozen_tower_is_its_source_byte_for_byte(tmp_path: Path) -> None:
    lines = export_tower(finished_run(), "text", tmp_path / "out")
    source = finished_run() / "towers" / "text"
    for file in source.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert len(lines) == 1
    assert f"frozen, byte for byte as in {source}: model.safetensors SHA-256 " in lines[0]


def test_a_source_without_a_config_says_what_to_write(tmp_path: Path) -> None:
    module = make({"text": tower(1, 8)}).model.tower("text")
    randomise(module)
    write_tower(tmp_path / "source", module, "decoder")
    (tmp_path / "source" / "tower.json").unlink()
    spec = tower(1, 8, weights=str(tmp_path / "source"), freeze=True)
    zippkit.compile(make_spec({"text": spec})).save(tmp_path / "model")
    lines = export_tower(tmp_path / "model", "text", tmp_path / "out")
    assert lines[1].startswith("the folder does not tell its config; write into the spec: config: {'dim': 8, ")
    (tmp_path / "single").mkdir()
    shutil.copy(tmp_path / "source" / "model.safetensors", tmp_path / "single" / "text.safetensors")
    spec["weights"] = str(tmp_path / "single" / "text.safetensors")
    zippkit.compile(make_spec({"text": spec})).save(tmp_path / "model")
    export_tower(tmp_path / "model", "text", tmp_path / "from_file")
    assert [path.name for path in (tmp_path / "from_file").iterdir()] == ["model.safetensors"]


def test_what_has_moved_is_not_passed_off_as_its_source(tmp_path: Path) -> None:
    made = load(finished_run())
    with torch.no_grad():
        made.model.get_parameter("towers.text.norm.weight")[0] += 1
    made.save(tmp_path / "model")
    told = r"'text': the spec freezes it, but it differs from its first source in towers.text.norm.weight; it is not"
    with pytest.raises(CheckpointError, match=told):
        export_tower(tmp_path / "model", "text", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    thawed = {n: t.model_copy(update={"freeze": False}) for n, t in made.spec.towers.items()}
    load(tmp_path / "model", spec=made.spec.model_copy(update={"towers": thawed})).save(tmp_path / "thawed")
    assert str(finished_run()) not in export_tower(tmp_path / "thawed", "text", tmp_path / "out")[0]
    assert torch.equal(
        named_again(tmp_path / "out")["norm.weight"], made.model.tower("text").state_dict()["norm.weight"]
    )


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ZippkitError, match="no tower is called 'txet'; did you mean 'text'"):
        export_tower(finished_run(), "txet", tmp_path / "out")
    with pytest.raises(ZippkitError, match="tower 'text' has no adapters that could be merged; leave out --merge"):
        export_tower(finished_run(), "text", tmp_path / "out", merge=True)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        export_tower(tmp_path / "nowhere", "text", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").write_text("all of it")
    (tmp_path / "file").write_text("all of it")
    for place in ("there", "file"):
        with pytest.raises(ZippkitError, match=f"{place}: exists; choose another --out"):
            export_tower(finished_run(), "text", tmp_path / place)
    (tmp_path / "empty").mkdir()
    export_tower(finished_run(), "text", tmp_path / "empty")


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    done = command("export", finished_run(), "--tower", "text", "--out", "text", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "text"
    again = command("export", finished_run(), "--tower", "text", "--out", "text", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "text: exists; choose another --out\n"


def lora() -> zippkit.Composition:
    text = tower(2, 8, freeze=True, lora={"rank": 2, "pattern": "layers.*.self_attn.*"})
    made = zippkit.compile(make_spec({"text": text, "speech": tower(2, 8, 30)}, [link("speech", "text", every=1)]))
    randomise(made.model.adapters)
    return made


def test_adapters_are_merged_on_request_and_left_out_otherwise(tmp_path: Path) -> None:
    made = lora()
    made.save(tmp_path / "model")
    lines = export_tower(tmp_path / "model", "text", tmp_path / "plain")
    assert lines[1] == "its adapters are left out; --merge adds them into the weights"
    base = made.model.tower("text").state_dict()
    assert all(torch.equal(named_again(tmp_path / "plain")[key], tensor) for key, tensor in base.items())
    assert "its adapters merged" in export_tower(tmp_path / "model", "text", tmp_path / "merged", merge=True)[0]
    merged = named_again(tmp_path / "merged")
    moved = {key for key, tensor in base.items() if not torch.equal(merged[key], tensor)}
    assert moved == {key for key in base if ".self_attn." in key}
    # Without links in the way, the merged tower alone computes what tower and adapters computed.
    batch = made.collate([[zippkit.Segment("text", torch.tensor([1, 2, 3]))]])
    alone = zippkit.compile(make_spec({"text": {"kind": "decoder", "weights": str(tmp_path / "merged")}}))
    with torch.no_grad():
        expected, found = made.model.eval()(batch)["text"], alone.model.eval()(batch)["text"]
    assert torch.allclose(found, expected, atol=1e-5)
    assert read_tensors(tmp_path / "model" / "adapters.safetensors")
