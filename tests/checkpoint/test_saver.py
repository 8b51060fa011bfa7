"""Checkpoints that are written while a run goes on."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
import torch

import zippkit
from helpers.compositions import link, make, tower
from zippkit.checkpoint.checkpoint import Checkpoint
from zippkit.checkpoint.saver import Saver
from zippkit.checkpoint.writing import write_checkpoint
from zippkit.errors import ZippkitError


def checkpoint(zipped: zippkit.Composition) -> Checkpoint:
    return Checkpoint(zipped.spec, zipped.model.state_dict(), {"a:exp_avg": torch.ones(3)})


@pytest.fixture
def zipped() -> zippkit.Composition:
    towers = {"text": tower(2, config={"tied": True}), "speech": tower(2, dim=24), "sound": {"share_with": "speech"}}
    return make(towers, [link("speech", "text", every=1)])


def test_what_changes_meanwhile_is_not_what_is_saved(
    tmp_path: Path, zipped: zippkit.Composition, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "at-once", checkpoint(zipped))
    changed = Event()

    def later(*args: object, **kwargs: object) -> None:
        assert changed.wait(60)
        write_checkpoint(*args, **kwargs)

    monkeypatch.setattr("zippkit.checkpoint.saver.write_checkpoint", later)
    saver, after = Saver(tmp_path, in_background=True), []
    saver.save(tmp_path / "meanwhile", checkpoint(zipped), lambda: after.append((tmp_path / "meanwhile").exists()))
    assert not (tmp_path / "meanwhile").exists()
    with torch.no_grad():
        for parameter in zipped.model.parameters():
            parameter.zero_()
    changed.set()
    saver.wait()
    assert after == [True]
    files = sorted(file.relative_to(tmp_path / "at-once") for file in (tmp_path / "at-once").rglob("*.*"))
    for file in files:
        assert (tmp_path / "meanwhile" / file).read_bytes() == (tmp_path / "at-once" / file).read_bytes(), file


def test_what_fails_in_the_background_stops_the_run(tmp_path: Path, zipped: zippkit.Composition) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "something else").touch()
    saver = Saver(tmp_path, in_background=True)
    saver.save(tmp_path / "a", checkpoint(zipped))
    with pytest.raises(ZippkitError, match="not a checkpoint"):
        saver.save(tmp_path / "b", checkpoint(zipped))
    assert not (tmp_path / "b").exists()
    saver.save(tmp_path / "b", checkpoint(zipped))
    saver.wait()
    assert (tmp_path / "b").exists(), "an error is told once"
