"""Metrics of a run: one JSON object a line, and the same numbers for TensorBoard where it is installed."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zippkit.errors import ZippkitError
from zippkit.system.extras import is_installed
from zippkit.system.files import parse_json, write_text, writing

_OWN = ("phase", "step", "gradient_norm", "tokens_per_second", "rate_factor")
"""Keys of a line beside its losses."""


class Metrics:
    """Appends to ``metrics.jsonl``; lines of steps that are run again after a resume are dropped first.

    A line is ``{"phase": ..., "step": ..., "losses": {"text": ..., "total": ...}, "gradient_norm": ...}`` and the like;
    losses are by themselves, because a tower may have any name. Where the dev split was looked at, ``validation`` holds
    what was measured, by metric.
    """

    def __init__(self, run: Path, phase: str, start: int) -> None:
        self._path = run / "metrics.jsonl"
        self._phase = phase
        kept = [line for line in read_metrics(run) if line["phase"] != phase or line["step"] <= start]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        with writing(self._path):
            self._file = self._path.open("a")
            board = run / "tensorboard" / phase.replace(" ", "_")
            self._board = _Board(board, start) if is_installed("tensorboard") else None

    def write(
        self, step: int, losses: Mapping[str, float], validation: Mapping[str, float] | None = None, **others: float
    ) -> None:
        """Record the values of one step, and what was measured on the dev split after it, if anything.

        Raises:
            WriteError: the disk is full or read-only.
        """
        line = {"phase": self._phase, "step": step, "losses": dict(losses), **others}
        if validation:
            line["validation"] = dict(validation)
        with writing(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            if self._board is not None:
                dev = {f"validation/{name}": value for name, value in (validation or {}).items()}
                self._board.add(step, {f"losses/{name}": value for name, value in losses.items()} | others | dev)

    def close(self) -> None:
        """Close both files."""
        with writing(self._path):
            self._file.close()
            if self._board is not None:
                self._board.close()


class _Board:
    """Writes the files that TensorBoard reads. Its own writer does so in a thread, where a full disk is a traceback."""

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard takes a run's files in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("ab"))
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # From here on, what an earlier file says of later steps does not count.
        self._add(Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        told = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._add(Event(wall_time=time.time(), step=step, summary=told))

    def _add(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()

    def close(self) -> None:
        self._records.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return every recorded line of a run, those of older versions as newer ones.

    A last line that was cut short by a kill is left out.

    Raises:
        ZippkitError: a line is something else.
    """
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    texts = path.read_bytes().splitlines()
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(_line(parse_json(text)))
        except ValueError as error:
            if number < len(texts):
                raise ZippkitError(f"{path}:{number}: not a line of metrics ({error}); remove it") from None
    return lines


def _line(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict) or not isinstance(found.get("step"), int) or not isinstance(found.get("phase"), str):
        raise ValueError("expected an object with phase and step")
    if isinstance(found.get("losses"), dict):
        return found
    own = {name: value for name, value in found.items() if name in _OWN}
    return {**own, "losses": {name: value for name, value in found.items() if name not in _OWN}}
