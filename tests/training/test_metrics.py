"""Metrics: a line of JSON for each look, none twice, whatever a kill left behind; and the same for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.tiny_runs import finished_run
from zippkit.training.metrics import Metrics, read_metrics


def write(run: Path, phase: str, start: int, steps: range) -> None:
    metrics = Metrics(run, phase, start)
    for step in steps:
        metrics.write(step, {"total": 1 / step})
    metrics.close()


def told(run: Path) -> list[tuple[str, int]]:
    return [(line["phase"], line["step"]) for line in read_metrics(run)]


def test_lines_go_around(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    write(tmp_path, "train", 0, range(1, 3))
    assert read_metrics(tmp_path) == [
        {"phase": "train", "step": 1, "total": 1.0},
        {"phase": "train", "step": 2, "total": 0.5},
    ]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "train", 0)
    metrics.write(1, {"total": 1.0})
    assert told(tmp_path) == [("train", 1)]
    metrics.close()


def test_steps_that_are_run_again_are_told_once(tmp_path: Path) -> None:
    write(tmp_path, "pretrain.text", 0, range(1, 9))
    write(tmp_path, "train", 0, range(1, 7))
    write(tmp_path, "train", 4, range(5, 8))
    assert told(tmp_path) == [("pretrain.text", step) for step in range(1, 9)] + [
        ("train", step) for step in range(1, 8)
    ]


@pytest.mark.parametrize("n_left", [0, 1, 20, -1])
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, n_left: int) -> None:
    write(tmp_path, "train", 0, range(1, 4))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:n_left])
    # All but the newline is the whole line.
    n_whole = 3 if n_left == -1 else 2
    assert told(tmp_path) == [("train", step) for step in range(1, n_whole + 1)]
    write(tmp_path, "train", 3, range(4, 6))
    assert told(tmp_path) == [("train", step) for step in [*range(1, n_whole + 1), 4, 5]]
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_tensorboard_sees_the_same_numbers() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finished_run() / "tensorboard" / "train")).Reload()
    lines = [line for line in read_metrics(finished_run()) if line["phase"] == "train"]
    assert set(board.Tags()["scalars"]) == lines[0].keys() - {"phase", "step"}
    for line, event in zip(lines, board.Scalars("total"), strict=True):
        assert event.step == line["step"]
        assert event.value == pytest.approx(line["total"], rel=1e-6)
