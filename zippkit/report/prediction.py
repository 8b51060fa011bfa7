"""What a user writes to predict a step on many ranks, `--with key=value`, and a recipe's own settings under it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import yaml

from zippkit.errors import ZippkitError, did_you_mean
from zippkit.report.division import Division
from zippkit.report.hardware import Hardware, known
from zippkit.report.rank_sizes import RankCost, Step, rank_sizes
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.phase import Phase
from zippkit.spec.recipe import Recipe

CHOICES: Mapping[str, Sequence[object]] = {
    "precision": ("fp32", "bf16"),
    "optimizer": ("adam", "adamw", "adafactor"),
    "shard": ("none", "trained", "all"),
    "frozen": ("replicate", "per_layer", "root"),
    "units": ("layers", "root"),
}


def predict(
    spec: CompositionSpec,
    recipe: Recipe | None,
    ranks: Sequence[int],
    settings: Sequence[str] = (),
    tasks: Sequence[str] | None = None,
    source_tokens: int | None = None,
    target_tokens: int | None = None,
) -> list[RankCost]:
    """Predict a training step, as `zippkit.report.rank_sizes.rank_sizes` does.

    Args:
        spec: the composition.
        recipe: it may say how it is run: batch size, parts, precision, optimizer, recompute, and ``parallel``.
        ranks: several numbers of them.
        settings: ``key=value`` of a `Division`, a `Step`, or a `Hardware` (``hardware`` is one of its names).
        tasks: as `zippkit.report.sizes.sizes` takes them.
        source_tokens: likewise.
        target_tokens: likewise.

    Raises:
        ZippkitError: a setting that is none, or has another type.
    """
    given = dict(_parsed(setting) for setting in settings)
    hardware = replace(known(str(given.pop("hardware", "h100"))), **_taken(given, Hardware, ("name", "aliases")))
    shared = _parallel(recipe) | _taken(given, Division, ("ranks",))
    step = _taken(given, Step)
    for key in given:
        names = [f.name for kind in (Division, Step, Hardware) for f in fields(kind)]
        raise ZippkitError(f"--with {key}: no setting is called {key!r}{did_you_mean(key, ['hardware', *names])}")
    found: list[RankCost] = []
    for n in ranks:
        own = Step(**(_steps(recipe, n) | step))
        division = Division(ranks=n, **shared)
        found += rank_sizes(spec, [division], hardware, own, tasks, source_tokens, target_tokens)
    return sorted(found, key=lambda cost: cost.task)


def _parsed(setting: str) -> tuple[str, Any]:
    key, is_there, value = setting.partition("=")
    if not is_there:
        raise ZippkitError(f"--with {setting}: expected key=value, such as rows=16")
    return key.strip(), yaml.safe_load(value)


def _taken(given: dict[str, Any], kind: type, but: Sequence[str] = ()) -> dict[str, Any]:
    """Take out what a dataclass has, checked."""
    types = {field.name: field.type for field in fields(kind) if field.name not in but}
    found = {key: given.pop(key) for key in list(given) if key in types}
    for key, value in found.items():
        if key in CHOICES and value not in CHOICES[key]:
            raise ZippkitError(f"--with {key}: expected one of {', '.join(map(str, CHOICES[key]))}, got {value!r}")
        if str(types[key]) in ("int", "float"):
            found[key] = _number(key, value, whole=str(types[key]) == "int")
        elif str(types[key]) == "bool" and not isinstance(value, bool):
            raise ZippkitError(f"--with {key}: expected true or false, got {value!r}")
    return found


def _number(key: str, value: Any, whole: bool) -> float:
    try:
        # YAML takes 3e12 for a word.
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number <= 0 or isinstance(value, bool) or (whole and number != int(number)):
        raise ZippkitError(f"--with {key}: expected a positive {'whole ' if whole else ''}number, got {value!r}")
    return int(number) if whole else number


def _parallel(recipe: Recipe | None) -> dict[str, Any]:
    section = getattr(recipe, "parallel", None)
    return {key: getattr(section, key) for key in ("shard", "frozen", "replicas")} if section is not None else {}


def _steps(recipe: Recipe | None, n_ranks: int) -> dict[str, Any]:
    """What a recipe says of a step; of stages, the first, and the whole step's rows are dealt out."""
    if recipe is None:
        return {}
    phase = next(_phases(recipe))
    return {
        "rows": -(-phase.batch_size // n_ranks),
        "n_parts": phase.accumulate,
        "precision": phase.precision,
        "narrow": phase.parameters == "bf16",
        "optimizer": phase.optimizer,
        "recompute": bool(phase.recompute),
        "logits_mib": phase.logits_mib,
    }


def _phases(recipe: Recipe) -> Iterator[Phase]:
    if isinstance(recipe.train, Phase):
        yield recipe.train
    else:
        yield from recipe.train
