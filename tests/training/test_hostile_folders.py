"""Names in manifests, evaluations and indices that lead out of their folder, and metadata made to break readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny_runs
from zippkit.checkpoint.reading import read_checkpoint
from zippkit.data.dataset import Dataset
from zippkit.errors import CheckpointError, DataError, ZippkitError
from zippkit.model.weights import read_tensors, weight_files
from zippkit.report.run_page import write_report
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow

DEEP = "[" * 100_000


def _edit(file: Path, change: Callable[[Any], None]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tiny_runs.write_data(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_runs.copied(tiny_runs.finished_run(), tmp_path / "copy")


def _tokenizer_at(data: Path, name: str) -> None:
    def change(manifest: Any) -> None:
        text = manifest["modalities"]["text"]
        manifest["files"][name] = manifest["files"].pop(text["file"])
        text["file"] = name

    _edit(data / "manifest.json", change)


def test_training_writes_no_tokenizer_outside_the_run(tmp_path: Path) -> None:
    recipe = tiny_runs.tiny_recipe(tmp_path / "a" / "b" / "c")
    tokenizer = recipe.data / "tokenizers" / "text.json"
    victim = tmp_path / "a" / ".bashrc"
    for copy in (recipe.data.parent.parent / ".bashrc", victim):
        copy.write_bytes(tokenizer.read_bytes())
    _tokenizer_at(recipe.data, "../../.bashrc")
    victim.write_text("precious")
    with pytest.raises(DataError, match=r"files: '../../.bashrc' is not a name inside the folder"):
        train(recipe, tmp_path / "a" / "runs" / "run")
    assert victim.read_text() == "precious"


def test_a_dataset_holds_its_files_itself(data: Path, tmp_path: Path) -> None:
    (data / "tokenizers" / "text.json").rename(tmp_path / "text.json")
    (data / "tokenizers" / "text.json").symlink_to(tmp_path / "text.json")
    with pytest.raises(DataError, match="leads out of the folder through a symbolic link"):
        Dataset.open(data)


def test_a_dataset_may_be_a_link_as_a_whole(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    assert Dataset.open(tmp_path / "link").modalities == ("text", "speech")


@pytest.mark.parametrize("where", ["files", "towers"])
def test_a_checkpoint_names_only_its_own_files(run: Path, where: str) -> None:
    def change(manifest: Any) -> None:
        if where == "files":
            manifest["files"]["../../recipe.yaml"] = manifest["files"]["spec.yaml"]
        else:
            manifest["towers"]["speech"]["folder"] = "../towers/text"

    _edit(run / "model" / "manifest.json", change)
    with pytest.raises(CheckpointError, match=r"manifest.json: (files|towers.speech): .* is not a name inside the"):
        read_checkpoint(run / "model")


def test_an_index_of_shards_names_only_files_beside_it(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    index = {"weight_map": {"a": "../copy/run/model/links.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is not a name inside the folder"):
        weight_files(folder)
    # The Hugging Face cache is made of links.
    (folder / "shard.safetensors").symlink_to(run / "model" / "links.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
    assert read_tensors(folder)


@pytest.mark.parametrize("sound", ["../secret.txt", "/etc/hostname", "samples/link.wav"])
def test_a_report_embeds_no_file_from_elsewhere(run: Path, sound: str) -> None:
    (run.parent / "secret.txt").write_text("secret")
    (run / "samples").mkdir()
    (run / "samples" / "link.wav").symlink_to(run.parent / "secret.txt")
    answer = {"id": "a", "reference": "one", "hypothesis": "one", "sound": sound}
    task = {"task": "text -> speech", "scorer": "x", "best_of": 1, "wer": 0.0, "wer_target": 0.0, "wer_oracle": 0.0}
    scores = {"split": "test", "tasks": [{**task, "answers": [answer]}], "retention": []}
    (run / "evaluation.json").write_text(json.dumps(scores))
    with pytest.raises(ZippkitError, match=r"evaluation.json: sound: .*(is not a name|leads out)"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_manifests_that_are_too_deep_to_read(run: Path, data: Path) -> None:
    (data / "manifest.json").write_text(DEEP)
    with pytest.raises(DataError, match=r"manifest.json: not a dataset's manifest"):
        Dataset.open(data)
    (run / "model" / "manifest.json").write_text(DEEP)
    with pytest.raises(CheckpointError, match=r"manifest.json: not JSON: lists or objects within each other"):
        read_checkpoint(run / "model")
    (run / "evaluation.json").write_text(DEEP)
    with pytest.raises(ZippkitError, match=r"evaluation.json: not JSON: lists or objects within each other"):
        RunFolder(run).read_json("evaluation.json")


def test_weights_whose_metadata_are_too_deep_to_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"same": DEEP})
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_tensors(tmp_path / "a.safetensors")
