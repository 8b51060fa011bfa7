"""How a run is scored this time: its recipe's ``evaluate``, with what the command line says otherwise."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zippkit.errors import SpecError, ZippkitError
from zippkit.evaluation.evaluation_file import FILE, read_evaluation
from zippkit.spec.derived_recipe import dump
from zippkit.spec.phase import Evaluation
from zippkit.spec.recipe import Recipe
from zippkit.spec.recipe_checks import recipe_complaints
from zippkit.spec.sampling import Sampling
from zippkit.spec.validation import validate
from zippkit.spec.yaml_document import Document, override
from zippkit.training.run_folder import RunFolder

FOLDER = "evaluations"
"""In a run: scores of other settings than the run's own, each in a folder of its own."""


def overridden(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with other settings of ``evaluate``.

    Args:
        recipe: the run's.
        settings: ``key=value`` as in `evaluate`; besides, ``task=...`` for one task, and ``beams=4`` and the like for
            all modalities.

    Raises:
        SpecError: every setting that does not fit.
    """
    if not settings:
        return recipe
    document = Document("eval", {})
    override(document, settings)
    given, choosing = dict(document.data), dict[str, Any]()
    for key in [key for key in given if key in Sampling.model_fields]:
        choosing[key] = given.pop(key)
    if "task" in given:
        given["tasks"] = [given.pop("task")]
    data = _merged(dump(recipe.evaluate), given)
    if "split" in given and "splits" not in given:
        data.pop("splits", None)
    if choosing:
        known = data.get("sampling", {})
        data["sampling"] = {name: known.get(name, {}) | choosing for name in recipe.spec.modalities}
    how, complaints = validate(Evaluation, data)
    if how is None:
        raise SpecError([document.problem(place, message) for place, message in complaints])
    changed = recipe.model_copy(update={"evaluate": how})
    wrong = [(place[1:], said) for place, said in recipe_complaints(changed) if place[:1] == ("evaluate",)]
    if wrong:
        raise SpecError([document.problem(place, said) for place, said in wrong])
    return changed


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with some of its keys replaced, at any depth."""
    found = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found


def as_told(settings: Sequence[str], split: str | None, data: Path | None) -> dict[str, str]:
    """What was asked for otherwise, by key."""
    told = {key: value for key, _, value in (setting.partition("=") for setting in settings)}
    told |= {"split": split} if split is not None else {}
    return told | ({"--data": str(data)} if data is not None else {})


def place_of_scores(run: RunFolder, told: Mapping[str, str]) -> Path:
    """The folder that scores go to: the run itself, unless it holds its own and these are of other settings."""
    if not told:
        return run.path
    try:
        own = read_evaluation(run)
    except ZippkitError:  # It is written anew.
        own = None
    if own is None or own.overrides:
        return run.path
    name = re.sub(r"[^\w.=,-]+", "_", ",".join(f"{key}={value}" for key, value in sorted(told.items())))
    digest = hashlib.sha256(repr(sorted(told.items())).encode()).hexdigest()[:8]
    return run.path / FOLDER / (name if len(name) <= 80 else f"{name[:70]}-{digest}")


def explanation(folder: Path) -> str:
    """Where scores of other settings are."""
    return f"scored with other settings than the run's own, whose scores stay: see {folder / FILE}"
