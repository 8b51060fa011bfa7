"""Schedules, against torch's own schedulers, and settings of optimisers that have no use."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.optim import lr_scheduler

from zippkit.spec.phase import Phase


def theirs(phase: Phase) -> list[float]:
    """The same rates by torch's schedulers, one after the other."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    falls, first = phase.steps - phase.warmup, phase.warmup
    if phase.schedule == "wsd":
        falls = min(phase.decay or max(1, phase.steps // 10), phase.steps - phase.warmup)
        first = phase.steps - falls
    after: Any = {
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, falls, eta_min=phase.final),
        "linear": lambda: lr_scheduler.LinearLR(optimizer, 1.0, phase.final, falls),
        "wsd": lambda: lr_scheduler.LinearLR(optimizer, 1.0, phase.final, falls),
    }[phase.schedule]
    parts: list[Any] = []
    ends: list[int] = []
    if phase.warmup:
        parts.append(lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / phase.warmup))
        ends.append(phase.warmup)
    if phase.schedule == "wsd" and first > phase.warmup:
        parts.append(lr_scheduler.ConstantLR(optimizer, factor=1.0))
        ends.append(first)
    schedule = lr_scheduler.SequentialLR(optimizer, [*parts, after()], ends) if parts else after()
    rates = []
    for _ in range(phase.steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return rates


@given(
    st.integers(2, 40),
    st.floats(0, 1),
    st.sampled_from(["constant", "cosine", "linear", "wsd"]),
    st.floats(0.01, 1),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_rates_are_those_of_torch_s_schedulers(
    steps: int, warm: float, schedule: str, final: float, whole: bool
) -> None:
    warmup = int(warm * (steps - 1))
    more = {} if schedule == "constant" else {"final": final}
    if schedule == "wsd" and whole:
        more["decay"] = steps - warmup
    phase = Phase(steps=steps, warmup=warmup, schedule=schedule, **more)  # type: ignore[arg-type]
    assert [phase.rate(step) for step in range(steps)] == pytest.approx(theirs(phase), abs=1e-6)


def test_constant_and_cosine_are_to_the_bit_what_they_were() -> None:
    phase = Phase(steps=97, warmup=13, schedule="cosine")
    for step in range(13, 97):
        assert phase.rate(step) == 0.5 * (1 + math.cos(math.pi * min(1.0, (step - 13) / 84)))
    assert {Phase(steps=10).rate(step) for step in range(10)} == {1.0}


def test_warm_up_stable_decay() -> None:
    rates = [Phase(steps=10, warmup=2, schedule="wsd", decay=4).rate(step) for step in range(10)]
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"decay": 3, "final": 0.5}, "`decay` is of `schedule: wsd`, not of `constant`; remove it; `final` is of a"),
        ({"final": 0.1}, "`final` is of a schedule that falls (cosine, linear, wsd), not of `constant`; remove it"),
        ({"schedule": "wsd", "decay": 8, "warmup": 3}, "`warmup` 3 and `decay` 8 are more than the 10 steps"),
        ({"optimizer": "adafactor", "betas": [0.9, 0.99]}, "`betas` are of adam and adamw, not of adafactor"),
        ({"optimizer": "sgd"}, "'adam', 'adamw' or 'adafactor'"),
    ],
)
def test_settings_without_a_use_are_refused(given_: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        Phase(steps=10, **given_)
