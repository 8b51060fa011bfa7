"""The class that every tracker derives from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from zippkit.spec.kinds import Strict


@dataclass(frozen=True)
class TrackedRun:
    """The run that is tracked."""

    path: Path
    """Its folder; what a tracker writes beside it goes in here."""
    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The recipe as plain data."""


class Tracker(ABC):
    """Is told a run's metrics, which are in ``metrics.jsonl`` in any case.

    Whatever it raises ends the tracker and not the run. Keep the module free of imports that are slow or optional:
    `zippkit check` reads it to know the ``Config``.
    """

    Config: ClassVar[type[Strict]] = Strict
    """Its settings in a recipe's `track`."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules of `zippkit.system.extras.EXTRAS` without which it is refused before training starts."""

    def __init__(self, config: Any) -> None:
        """Prepare a tracker; ``config`` is a `Config`."""
        self.config = config

    @abstractmethod
    def start(self, run: TrackedRun, state: Mapping[str, Any]) -> dict[str, Any]:
        """Begin, or go on with what an earlier start of the same run began.

        Args:
            run: what is tracked.
            state: what the earlier start returned; empty at first.

        Returns:
            What the next start needs to go on, as JSON; it is kept in the run's ``trackers.json``.
        """

    def begin(self, phase: str, step: int) -> None:  # noqa: B027 (most have nothing to do)
        """A phase begins after so many of its steps; later steps that were told before did not count."""

    @abstractmethod
    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step of a phase, such as ``losses/total`` and ``validation/text_wer``."""

    def finish(self) -> None:  # noqa: B027
        """The run ends, or stops for now."""
