"""Metrics of a run: one JSON object a line, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zippkit.system.files import write_text


class Metrics:
    """Appends to ``metrics.jsonl``; lines of steps that are run again after a resume are dropped first."""

    def __init__(self, run: Path, phase: str, start: int) -> None:
        self._path = run / "metrics.jsonl"
        self._phase = phase
        kept = [line for line in read_metrics(run) if line["phase"] != phase or line["step"] <= start]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a")
        self._board = _board(run / "tensorboard" / phase.replace(" ", "_"), start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the values of one step."""
        self._file.write(json.dumps({"phase": self._phase, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _board(folder: Path, start: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start + 1)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Every recorded line of a run; a last line that was cut short by a kill is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
