"""What a run may change when it goes on, why the rest must stay, and what has been changed when."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zippkit.errors import ZippkitError
from zippkit.spec.recipe import Recipe
from zippkit.spec.yaml_document import KeyPath, dotted
from zippkit.system.files import parse_json, write_text

HISTORY = "history.jsonl"
"""In a run: when it was started, and which changes it went on with."""

SECTIONS = {"device", "parallel", "evaluate", "validation", "track"}
"""Of a recipe: those that say nothing about what is learnt."""
OF_EVERY_PHASE = {
    *("log_every", "save_every", "save_async", "compile", "pad_multiple"),
    *("accumulate", "recompute", "logits_mib", "cache_sources", "pack", "pack_length", "place"),
}
"""Keys of a phase, or of a tower, that say how a step is computed or kept, not what it learns."""
OF_MAIN_PHASES = {"steps", "batch_size"}
"""Keys that a phase of the whole composition may change as well."""

_EXAMPLES = "what the run has learnt came of those examples"
REASONS = {
    "spec": "the checkpoints are of that composition",
    "seed": "new parameters and the order of examples follow from it",
    "start_from": "the run began there",
    "name": "it is the name of this run",
    "pretrain": "what came later rests on those towers",
    **dict.fromkeys(("data", "split", "temperature", "tasks", "fraction", "pack"), _EXAMPLES),
    "optimizer": "the state that was saved is of that optimizer",
}
"""Why a section of the recipe, or a key of a phase, stays as it is."""
_STEPS = "the steps that were taken, were taken with it"


@dataclass(frozen=True)
class Change:
    """One key of a recipe that is not what the run was started with."""

    key_path: KeyPath
    old: Any
    new: Any

    @property
    def key(self) -> str:
        """As a message tells it: ``train[0].steps``."""
        return dotted(self.key_path)

    def __str__(self) -> str:
        return f"{self.key}: {_told(self.old)} -> {_told(self.new)}"


def _told(value: Any) -> str:
    """A value as YAML writes it in one line, if it is short."""
    said = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return said if len(said) <= 80 else said[:77] + "..."


def differences(old: Any, new: Any, key_path: KeyPath = ()) -> Iterator[Change]:
    """Every place in which two recipes differ, as plain data with all defaults written out."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), (*key_path, key))
    elif _stages(old) and _stages(new) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, (*key_path, i))
    elif old != new:
        yield Change(key_path, old, new)


def _stages(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)


def refusal(change: Change, reached: Mapping[str, int]) -> str:
    """Why a run cannot go on with a change; empty where it can.

    Args:
        change: of one key.
        reached: steps that were taken, by the place of the phase, such as ``train[0]``, in their order.
    """
    section, last = change.key_path[0], change.key_path[-1]
    phase = dotted(change.key_path[:-1])
    if section in SECTIONS or last in OF_EVERY_PHASE:
        return ""
    if section == "train" and last == "steps":
        if phase in list(reached)[:-1]:
            return "the next stage has begun where this one ended"
        n_taken = reached.get(phase, 0)
        return f"the run has taken {n_taken} already" if change.new < n_taken else ""
    if section == "train" and last in OF_MAIN_PHASES:
        return ""
    return next((REASONS[str(key)] for key in change.key_path if str(key) in REASONS), _STEPS)


def consequences(found: Sequence[Change], recipe: Recipe, reached: Mapping[str, int]) -> Iterator[str]:
    """Say what follows from accepted changes for the steps to come, where a change does not say it all itself."""
    phases = {each.key_path: each.phase for each in recipe.main_phases}
    for change in found:
        place, key = change.key_path[:-1], change.key_path[-1]
        n_taken = reached.get(dotted(place), 0)
        if n_taken and key == "batch_size":
            yield (
                f"from step {n_taken + 1} on, the order is that of the new batch size: in the epoch under way some "
                "examples come twice and others not at all"
            )
        if n_taken and key == "steps":
            now = phases[place]
            before = now.model_copy(update={"steps": change.old})
            if before.rate(n_taken) != now.rate(n_taken):
                yield (
                    f"schedule: {now.schedule} is that of {now.steps} steps from now on; the rate's factor, "
                    f"{before.rate(n_taken - 1):.3g} at step {n_taken}, is {now.rate(n_taken):.3g} at the next one"
                )


def accept(run: Path, found: Sequence[Change], reached: Mapping[str, int]) -> None:
    """Accept changes of a run's recipe.

    Raises:
        ZippkitError: some of them it must not make; tells of every one, why, and what to do.
    """
    refused = [f"{change}; {reason}" for change in found if (reason := refusal(change, reached))]
    if refused:
        raise ZippkitError(
            f"{run}: holds the run of another recipe ({'; '.join(refused)}); choose another --out, and in its recipe "
            f"`start_from: {run}` to begin with what this run has learnt"
        )


def remember(run: Path, there: str, here: str, found: Sequence[Change], reached: Mapping[str, int]) -> None:
    """Add a line to ``history.jsonl``, before the recipe is written over.

    A kill between the two leaves a line of a recipe that never came into effect; it is dropped here.

    Args:
        run: the folder.
        there: the text of the recipe that is in effect; empty at first.
        here: that of the new one.
        found: its changes.
        reached: steps that were taken, by phase.
    """
    before = _digest(there)
    lines = read_history(run)
    if lines and lines[-1].get("changed") == before:
        lines.pop()
    when = datetime.now(UTC).isoformat(timespec="seconds")
    changed = {change.key: [change.old, change.new] for change in found}
    line = {"when": when, "zippkit": version("zippkit"), "steps": dict(reached), "changes": changed}
    lines.append({**line, "changed": before, "recipe": _digest(here)})
    write_text(run / HISTORY, "".join(json.dumps(line) + "\n" for line in lines))


def read_history(run: Path) -> list[dict[str, Any]]:
    """When a run was started, and which changes it went on with; empty for runs of older versions.

    Raises:
        ZippkitError: somebody else wrote it.
    """
    file = run / HISTORY
    try:
        return [parse_json(line) for line in file.read_text().splitlines()] if file.exists() else []
    except ValueError as error:
        raise ZippkitError(f"{file}: not lines of JSON: {error}") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def planned(recipe: Recipe) -> dict[str, Any]:
    """What decides when a run is finished, and which checkpoint its model is; kept with the finished model."""
    plan: dict[str, Any] = {"steps": recipe.main_phases[-1].phase.steps}
    if recipe.validation is not None and recipe.validation.best is not None:
        plan |= recipe.validation.model_dump(include={"patience", "model"}) | {"measures": recipe.validation.measures()}
    return plan
