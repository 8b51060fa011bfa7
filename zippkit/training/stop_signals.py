"""A first signal asks a run to stop after its step, a second one ends the process."""

from __future__ import annotations

import signal
import time
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
def stop_signals(echo: float = 0.0) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the step; a second one ends the process at once.

    Args:
        echo: seconds in which further ones are the first one again; a launcher passes on what its ranks have heard.
    """
    stop = StopRequest()
    earlier: dict[int, Any] = {}
    first = [0.0]

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        if stop.asked and time.monotonic() - first[0] > echo:
            signal.signal(number, earlier[number])
            signal.raise_signal(number)
        elif not stop.asked:
            stop.asked = True
            first[0] = time.monotonic()
            if not echo:
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
