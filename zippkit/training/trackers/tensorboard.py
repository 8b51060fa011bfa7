"""TensorBoard's files, in ``RUN/tensorboard/<phase>``."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zippkit.training.trackers.base import TrackedRun, Tracker


class TensorBoard(Tracker):
    """Writes the files itself: TensorBoard's own writer does so in a thread, where a full disk is a traceback."""

    needs = ("tensorboard",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._folder = Path()
        self._records: Any = None

    def start(self, run: TrackedRun, state: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing is kept: every start adds a file."""
        del state
        self._folder = run.path / "tensorboard"
        return {}

    def begin(self, phase: str, step: int) -> None:
        """Open a file for the phase."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.finish()
        folder = self._folder / phase.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard takes a run's files in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("ab"))
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # From here on, what an earlier file says of later steps does not count.
        self._add(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Write an event."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        del phase
        told = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._add(Event(wall_time=time.time(), step=step, summary=told))

    def _add(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()

    def finish(self) -> None:
        """Close the file."""
        if self._records is not None:
            self._records.close()
            self._records = None
