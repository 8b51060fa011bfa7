"""Exported models go to a hub and come back byte for byte; what goes wrong is one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.compositions import link, make, tower
from helpers.hub_server import running_hub
from helpers.tiny_runs import zippkit as command
from zippkit.training.hf_export.hub import pull, push

# The client's transport warns of how the client calls it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, bytes]]]:
    with running_hub() as (address, held):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield held


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    towers = {"text": tower(2, freeze=True), "speech": tower(2, 24, 30)}
    make(towers, [link("speech", "text", every=2)]).save(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_model_goes_there_and_comes_back(hub: dict[str, dict[str, bytes]], saved: Path, tmp_path: Path) -> None:
    """A checkpoint is exported on the way; large files go by their hash, the others inside the commit."""
    assert push(saved, "me/tiny").endswith("/me/tiny/commit/" + "0" * 39 + "1")
    found = pull("me/tiny", tmp_path / "back")
    names = {file.name for file in found.iterdir() if file.is_file()}
    assert names == {"README.md", "config.json", "diagram.svg", "model.safetensors", "modeling_zipped.py"}
    assert all((found / name).read_bytes() == content for name, content in hub["me/tiny"].items() if name in names)
    assert json.loads((found / "config.json").read_text())["model_type"] == "zippkit"
    again = command("push", found, "me/again")
    assert again.returncode == 0 and hub["me/again"]["model.safetensors"] == hub["me/tiny"]["model.safetensors"]


def test_what_goes_wrong_is_one_sentence(
    hub: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub["me/other"] = {"README.md": b"nothing"}
    told = command("pull", "me/other", tmp_path / "other")
    assert told.returncode == 2 and "me/other: holds no model that zippkit has exported" in told.stderr
    told = command("pull", "me/nothing", tmp_path / "nothing")
    assert told.returncode == 2 and "no such model there, or it is private" in told.stderr
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    told = command("pull", "me/tiny", tmp_path / "away")
    assert told.returncode == 2 and "is there a network?" in told.stderr and len(told.stderr.splitlines()) == 1
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    assert "choose another folder" in command("pull", "me/tiny", tmp_path / "full").stderr
