"""Progress of anything that takes longer than a glance: a live bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

# Seconds between lines where there is no terminal.
PERIOD = 15.0


class Advance(Protocol):
    """Tell how much is done."""

    def __call__(self, done: int, note: str = "") -> None:
        """Show that ``done`` of the total is done, with a note."""


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show the progress of ``what`` on standard error while the block runs."""
    if sys.stderr.isatty():
        with _bar(what, total) as advance:
            yield advance
    else:
        yield _Lines(what, total)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    note, description = TextColumn("{task.fields[note]}"), TextColumn("{task.description}")
    columns = (description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


@contextmanager
def without_bars_of_transformers() -> Iterator[None]:
    """Keep transformers, where it is imported, from showing its own progress bars among zippkit's lines."""
    told = sys.modules.get("transformers.utils.logging")
    if told is None or not told.is_progress_bar_enabled():
        yield
        return
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.enable_progress_bar()


class _Lines:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._began = self._told = time.monotonic()

    def __call__(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self._told < PERIOD and done < self._total:
            return
        self._told = now
        left = (now - self._began) / max(done, 1) * (self._total - done)
        print(f"{self._what}: {done}/{self._total}  {note}  {left:.0f} s left", file=sys.stderr, flush=True)
