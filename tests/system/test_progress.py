"""Progress: a line now and then into a file, a bar in a terminal, always on standard error and never after the end."""

from __future__ import annotations

import io
import sys

import pytest

from zippkit.system import progress as module
from zippkit.system.progress import PERIOD, progress


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def test_a_file_gets_a_line_in_each_period_and_the_last_one(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 100) as advance:
        for done in range(1, 101):
            clock.now += PERIOD / 40
            advance(done, f"loss {done}")
    out, err = capsys.readouterr()
    assert out == ""
    # Forty steps take a period, so 0.375 s each.
    assert err.splitlines() == [
        "train: 40/100  loss 40  22 s left",
        "train: 80/100  loss 80  8 s left",
        "train: 100/100  loss 100  0 s left",
    ]


def test_nothing_done_yet_is_no_division_by_zero(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("prepare", 4) as advance:
        clock.now += PERIOD
        advance(0)
    assert capsys.readouterr().err == "prepare: 0/4    60 s left\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("train", 3) as advance:
        advance(3, "loss 1.5")
    assert "train" in terminal.getvalue() and "3/3" in terminal.getvalue() and "loss 1.5" in terminal.getvalue()
    assert "s left" not in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_what_goes_wrong_inside_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(ZeroDivisionError), progress("train", 3):
            _ = 1 / 0
