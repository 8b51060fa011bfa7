"""C10 on a user's own run: the exported model is proven, and one that says something else is found out."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from helpers.tiny_runs import finished_run
from helpers.tiny_runs import zippkit as command
from zippkit.composition import load
from zippkit.evaluation.certificates import verify

pytestmark = pytest.mark.slow


def test_a_run_is_its_exported_model(tmp_path: Path) -> None:
    """It holds; with one weight moved it fails and names what differs."""
    assert command("export", finished_run(), "--hf", tmp_path / "out").returncode == 0
    zipped = load(finished_run())
    (holds,) = verify(zipped, only=["C10"], exported=tmp_path / "out").certificates
    assert holds.passed and "greedy tokens are the same" in holds.detail, holds.detail
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["links.speech_to_text.0.attention_gate"] += 0.5
    save_file(tensors, file, metadata={"format": "pt"})
    (fails,) = verify(zipped, only=["C10"], exported=tmp_path / "out").certificates
    assert not fails.passed and fails.detail.startswith("text, segment"), fails.detail


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    told = command("verify", finished_run(), "--export", tmp_path)
    assert told.returncode == 2 and "no exported model is there; write it, zippkit export" in told.stderr
