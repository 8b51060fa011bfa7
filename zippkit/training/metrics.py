"""Metrics of a run: one JSON object a line, and the same numbers for its trackers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from zippkit.errors import ZippkitError
from zippkit.system.files import parse_json, write_text, writing
from zippkit.training.trackers.tracking import Tracking

_OWN = ("phase", "step", "gradient_norm", "tokens_per_second", "rate_factor")
"""Keys of a line beside its losses."""


class Metrics:
    """Appends to ``metrics.jsonl``; lines of steps that are run again after a resume are dropped first.

    A line is ``{"phase": ..., "step": ..., "losses": {"text": ..., "total": ...}, "gradient_norm": ...}`` and the like;
    losses are by themselves, because a tower may have any name. Where the dev split was looked at, ``validation`` holds
    what was measured, by metric.
    """

    def __init__(
        self, run: Path, phase: str, start: int, tracking: Tracking | None = None, *, keeps: bool = True
    ) -> None:
        """Go on with a phase.

        Args:
            run: the run's folder.
            phase: label of the phase.
            start: steps that were taken; lines of later ones are dropped.
            tracking: who is told the same.
            keeps: False in a process that is not to write, because another one does.
        """
        self._file: IO[str] | None = None
        if not keeps:
            return
        self._path = run / "metrics.jsonl"
        self._phase, self._tracking = phase, tracking or Tracking()
        kept = [line for line in read_metrics(run) if line["phase"] != phase or line["step"] <= start]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        with writing(self._path):
            self._file = self._path.open("a")
        self._tracking.begin(phase, start)

    def write(
        self, step: int, losses: Mapping[str, float], validation: Mapping[str, float] | None = None, **others: float
    ) -> None:
        """Record the values of one step, and what was measured on the dev split after it, if anything.

        Raises:
            WriteError: the disk is full or read-only.
        """
        if self._file is None:
            return
        line = {"phase": self._phase, "step": step, "losses": dict(losses), **others}
        if validation:
            line["validation"] = dict(validation)
        with writing(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        dev = {f"validation/{name}": value for name, value in (validation or {}).items()}
        self._tracking.log(
            self._phase, step, {f"losses/{name}": value for name, value in losses.items()} | others | dev
        )

    def close(self) -> None:
        """Close the file."""
        if self._file is None:
            return
        with writing(self._path):
            self._file.close()


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
