"""Folders and hub ids, with a stand-in for the hub that hands out local folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from zippkit.spec.hf_folder import CONFIG, WEIGHTS, local_folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, list[str]]]:
    """A hub that holds `org/model`; what it is asked is noted, and what it hands out stays in the cache."""
    asked: list[tuple[bool, list[str]]] = []
    cache = tmp_path / "cache"

    def snapshot_download(repo: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((local_files_only, allow_patterns))
        if repo != "org/model" or (local_files_only and not cache.exists()):
            raise OSError("not there")
        cache.mkdir(exist_ok=True)
        for pattern in () if local_files_only else allow_patterns:
            (cache / pattern.replace("*.json", "config.json").replace("*", "model")).touch()
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_folder_is_itself(tmp_path: Path, hub: Any) -> None:
    assert local_folder(str(tmp_path)) == tmp_path
    assert not hub


def test_only_the_config_is_fetched_to_check_and_the_weights_to_build(hub: Any) -> None:
    assert {file.name for file in local_folder("org/model", CONFIG).iterdir()} == {"config.json"}
    assert hub == [(True, ["*.json"]), (False, ["*.json"])]
    hub.clear()
    assert (local_folder("org/model", WEIGHTS) / "model.safetensors").exists()
    assert [offline for offline, _ in hub] == [True, False], "the cache, which held the config alone, was not enough"
    hub.clear()
    local_folder("org/model", WEIGHTS)
    assert [offline for offline, _ in hub] == [True], "what is there is not asked for again"
    assert not any("bin" in pattern or "py" in pattern for _, patterns in hub for pattern in patterns)


@pytest.mark.usefixtures("hub")
def test_what_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match=r"'org/modle' is no folder, nor to be had from the hub \(OSError\)"):
        local_folder("org/modle")
    for path in ("runs/a/b", "../model", "model"):
        with pytest.raises(ValueError, match="is no folder; expected one, or a hub id"):
            local_folder(path)
