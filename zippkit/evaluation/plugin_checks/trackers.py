"""`check_tracker`: what a run expects of a tracker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zippkit.training.trackers.base import TrackedRun, Tracker


def check_tracker(tracker: type[Tracker], settings: Mapping[str, Any], folder: Path) -> None:
    """Let a tracker follow a small run that stops and goes on.

    Args:
        tracker: the class that the entry point names.
        settings: its settings, as a recipe's `track` writes them.
        folder: an empty one, for the run.

    Raises:
        AssertionError: it keeps something that is not JSON, or does not go on with the run that it began.
    """
    config, run = tracker.Config.model_validate(dict(settings)), TrackedRun(folder, "check", {"name": "check"})
    first = _followed(tracker(config), run, {}, 0)
    second = _followed(tracker(config), run, json.loads(json.dumps(first)), 2)
    assert second == first, f"started again with {first}, it returned another state, {second}; expected the same run"
    tracker(config).finish()


def _followed(tracker: Tracker, run: TrackedRun, state: Mapping[str, Any], taken: int) -> dict[str, Any]:
    """Two steps of two phases, of which the second is told anew after it was stopped."""
    kept = tracker.start(run, state)
    assert isinstance(kept, dict), f"start: expected a dict to keep, got {kept!r}"
    json.dumps(kept)
    for phase in ("pretrain.text", "train"):
        tracker.begin(phase, taken)
        for step in (taken + 1, taken + 2):
            tracker.log(phase, step, {"losses/total": 1 / step, "validation/text_wer": 0.5, "gradient_norm": 1.0})
    tracker.finish()
    return kept
