"""Training that is stopped at a chosen step, and whether the run that went on is the run that never stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zippkit.training.phase_run
from helpers.tiny_runs import saved
from zippkit.batch.batch import Batch
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.recipe import Recipe
from zippkit.training.metrics import read_metrics
from zippkit.training.step import TrainingStep, build_step
from zippkit.training.trainer import train

At = Callable[[int, ZippedModel], None]


def before_each_step(monkeypatch: pytest.MonkeyPatch, act: At) -> None:
    """Call ``act`` with the number of steps that were taken since the start, and the model."""

    def build(model: ZippedModel, *arguments: Any) -> TrainingStep:
        step = build_step(model, *arguments)
        n_steps = 0

        def watched(*batches: Batch) -> dict[str, torch.Tensor]:
            nonlocal n_steps
            act(n_steps, model)
            n_steps += 1
            return step(*batches)

        return watched

    monkeypatch.setattr(zippkit.training.phase_run, "build_step", build)


def on_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[ZippedModel], None]) -> None:
    before_each_step(monkeypatch, lambda n_steps, model: act(model) if n_steps == number else None)


def interrupt(_: ZippedModel) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def killed(recipe: Recipe, out: Path, seconds: float | None = None, changes: int | None = None) -> bool:
    """Train in a child that is killed after so many seconds, or before so many changes of the file system are made.

    Returns:
        whether it was killed, and not done by then.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if changes is not None:
                die_before_change(changes)
            train(recipe, out)
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def die_before_change(number: int) -> None:
    """In this process, the ``number``-th folder made, file renamed or file removed is never made."""
    left = number

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def change_or_die(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return change(*arguments, **more)

        return change_or_die

    for name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
        setattr(os, name, dying(getattr(os, name)))


def assert_same_run(run: Path, whole: Path, phase: str = "train") -> None:
    """Weights, optimizer and metrics (but for the speed) are equal to the last bit."""
    found, expected = saved(run, phase), saved(whole, phase)
    assert found.keys() == expected.keys()
    assert any(name.startswith("optimizer") and name.endswith("exp_avg_sq") for name in found)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    steps = [(line["phase"], line["step"]) for line in read_metrics(run)]
    assert len(steps) == len(set(steps)), "no step is told twice"
    told = [[line for line in read_metrics(path) if line["phase"] == phase] for path in (run, whole)]
    for line in (*told[0], *told[1]):
        del line["tokens_per_second"]
    assert told[0] == told[1], "each line is of the same steps"
