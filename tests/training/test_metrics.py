"""Metrics: a line of JSON for each look, none twice, whatever a kill left behind; and the same for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.tiny_runs import finished_run
from zippkit.errors import ZippkitError
from zippkit.training.metrics import Metrics, read_metrics


def write(run: Path, phase: str, start: int, steps: range) -> None:
    metrics = Metrics(run, phase, start)
    for step in steps:
        metrics.write(step, {"total": 1 / step}, rate_factor=1.0)
    metrics.close()


def told(run: Path) -> list[tuple[str, int]]:
    return [(line["phase"], line["step"]) for line in read_metrics(run)]


def test_lines_go_around(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    write(tmp_path, "train", 0, range(1, 3))
    assert read_metrics(tmp_path) == [
        {"phase": "train", "step": 1, "losses": {"total": 1.0}, "rate_factor": 1.0},
        {"phase": "train", "step": 2, "losses": {"total": 0.5}, "rate_factor": 1.0},
    ]


def test_a_tower_may_have_any_name(tmp_path: Path) -> None:
    losses = {"phase": 1.0, "step": 2.0, "losses": 3.0, "rate_factor": 4.0, "tokens_per_second": 5.0, "total": 6.0}
    metrics = Metrics(tmp_path, "train", 0)
    metrics.write(1, losses, tokens_per_second=7.0)
    metrics.close()
    assert read_metrics(tmp_path) == [{"phase": "train", "step": 1, "losses": losses, "tokens_per_second": 7.0}]


def test_lines_of_older_versions_are_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"phase": "train", "step": 1, "text": 2.0, "total": 3.0, "rate_factor": 1}\n'
    )
    (line,) = read_metrics(tmp_path)
    assert line == {"phase": "train", "step": 1, "rate_factor": 1, "losses": {"text": 2.0, "total": 3.0}}


@pytest.mark.parametrize("broken", [b"\xff\xfe", b"{", b"5", b'{"phase": "train"}', b"[" * 100_000])
def test_a_line_that_is_something_else_is_named(tmp_path: Path, broken: bytes) -> None:
    write(tmp_path, "train", 0, range(1, 3))
    first, second = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([first, broken, second]))
    with pytest.raises(ZippkitError, match=r"metrics.jsonl:2: not a line of metrics \(.+\); remove it"):
        read_metrics(tmp_path)


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
    others = lines[0].keys() - {"phase", "step", "losses"}
    assert set(board.Tags()["scalars"]) == others | {f"losses/{name}" for name in lines[0]["losses"]}
    for line, event in zip(lines, board.Scalars("losses/total"), strict=True):
        assert event.step == line["step"]
        assert event.value == pytest.approx(line["losses"]["total"], rel=1e-6)
