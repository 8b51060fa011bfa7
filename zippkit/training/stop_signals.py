"""A first signal asks a run to stop after its step, a second one ends the process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from zippkit.errors import ZippkitError


class InterruptedRunError(ZippkitError):
    """The run was asked to stop; everything up to its last step is saved."""


class StopRequest:
    """Whether a signal asked the run to stop."""

    asked = False


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the step; a second one ends the process at once."""
    stop = StopRequest()
    earlier: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        stop.asked = True
        signal.signal(number, earlier[number])

    for number in map(int, (signal.SIGINT, signal.SIGTERM)):
        earlier[number] = signal.getsignal(number)
        try:
            signal.signal(number, ask)
        except ValueError:  # Not the main thread: whoever runs it there handles signals.
            break
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            if signal.getsignal(number) is ask:
                signal.signal(number, handler)
