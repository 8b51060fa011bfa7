"""All trackers of a run at once: none of them can end it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from zippkit.spec.derived_recipe import dump
from zippkit.spec.recipe import Recipe
from zippkit.spec.registry import TRACKERS, implementation
from zippkit.spec.tracking import chosen_trackers
from zippkit.system.extras import is_installed, require
from zippkit.system.files import parse_json, write_json
from zippkit.training.trackers.base import TrackedRun, Tracker

STATE = "trackers.json"
"""In a run: what each tracker needs to go on."""


class Tracking:
    """Tells every tracker; one that raises is left out from then on, with one warning."""

    def __init__(self, trackers: Mapping[str, Tracker] | None = None, run: TrackedRun | None = None) -> None:
        """Hold trackers by the names of their kinds; they are started when there is something to tell."""
        self._trackers, self._run, self._started = dict(trackers or {}), run, False

    def begin(self, phase: str, step: int) -> None:
        """A phase begins or goes on after so many steps."""
        if not self._started and self._run is not None:
            self._started = True
            self._start(self._run)
        self._each(lambda tracker: tracker.begin(phase, step))

    def _start(self, run: TrackedRun) -> None:
        known = _states(run.path)
        states = dict(known)
        for kind in list(self._trackers):
            self._try(kind, partial(_begin, run, kind, states))
        states = {kind: state for kind, state in states.items() if state}
        if states != known:
            write_json(run.path / STATE, states)

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Tell the values of one step."""
        self._each(lambda tracker: tracker.log(phase, step, values))

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End them all after the block, if they were started."""
        try:
            yield
        finally:
            if self._started:
                self._each(lambda tracker: tracker.finish())

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for kind in list(self._trackers):
            self._try(kind, tell)

    def _try(self, kind: str, tell: Callable[[Tracker], None]) -> None:
        try:
            tell(self._trackers[kind])
        except Exception as error:  # Somebody's server or library: it must not cost the run.
            del self._trackers[kind]
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            print(f"warning: tracker {kind} failed ({reason}); the run goes on without it", file=sys.stderr)


def _begin(run: TrackedRun, kind: str, states: dict[str, Any], tracker: Tracker) -> None:
    """Start a tracker, and replace its state."""
    states[kind] = tracker.start(run, states.get(kind, {}))


def _states(run: Path) -> dict[str, Any]:
    """What the trackers of an earlier start have left; nothing where the file is damaged, and they begin anew."""
    with suppress(OSError, ValueError):
        found = parse_json((run / STATE).read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def open_tracking(recipe: Recipe, run: Path) -> Tracking:
    """The trackers of a recipe; TensorBoard, where it is installed, if it names none. Nothing is started.

    Raises:
        MissingExtraError: a package that a named one needs is not installed.
    """
    chosen = {"tensorboard": {}} if recipe.track is None else chosen_trackers(recipe.track)
    if recipe.track is None and not is_installed("tensorboard"):
        chosen = {}
    classes: dict[str, type[Tracker]] = {kind: implementation(TRACKERS, kind) for kind in chosen}
    if needed := [module for each in classes.values() for module in each.needs]:
        require(*needed)
    made = {kind: cls(cls.Config.model_validate(chosen[kind])) for kind, cls in classes.items()}
    return Tracking(made, TrackedRun(run, recipe.name, dump(recipe)))
