"""What a source cache will do, told before training: which towers are read from it, and how much room it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zippkit.batch.batch import Batch
from zippkit.composition import Composition, compile
from zippkit.errors import ZippkitError
from zippkit.spec.phase import Phase, Stage
from zippkit.spec.recipe import Recipe
from zippkit.spec.yaml_document import dotted
from zippkit.training.device import CPU, Backend
from zippkit.training.mixture import Mixture
from zippkit.training.source_cache import Entry, SourceCache
from zippkit.training.stage import Rest
from zippkit.training.state_store import DTYPES, StateStore, tell
from zippkit.training.task_data import TaskData

LOOKED_AT = 16
"""Examples of each task whose size is looked at."""
FOLDER = "source_states"
"""In the run, where a recipe names no other folder."""


def open_cache(
    phase: Phase,
    zipped: Composition,
    tasks: Sequence[TaskData],
    device: Backend,
    run: Path,
    fingerprints: Mapping[str, str | None],
) -> SourceCache | None:
    """The source cache that a phase asks for; None where it asks for none, or no tower's states can be kept.

    Tells on standard error which towers are read from it, why others are not, and how much room it takes.

    Args:
        phase: its settings.
        zipped: what is trained; parameters that have a gradient now are trained.
        tasks: the examples.
        device: where states are computed.
        run: folder in which the states are kept if the phase names no other.
        fingerprints: of the tokenizer of each modality.

    Raises:
        ZippkitError: the states would take more than the limit, or than the disk has left.
    """
    settings = phase.cache_sources
    if settings is None:
        return None
    store = StateStore(settings.folder or run / FOLDER, DTYPES[settings.dtype])
    cache = SourceCache(zipped, store, device, phase.precision, fingerprints)
    batches = {task: _looked_at(zipped, task) for task in tasks}
    computed = {line: None for each in batches.values() for line in _computed(cache, each[0])}
    tell(*computed)
    kept = {name: depths for each in batches.values() for name, depths in cache.kept(each[0]).items()}
    if not kept:
        tell("no tower's states can be kept; nothing is read or written")
        return None
    entries = {task: [entry for batch in each for entry in cache.entries(batch)] for task, each in batches.items()}
    whole, missing = (
        sum(len(task) * _bytes(found, there) / len(batches[task]) for task, found in entries.items())
        for there in (True, False)
    )
    n_examples = sum(map(len, tasks))
    where = ", ".join(f"{name} after layers {', '.join(map(str, depths))}" for name, depths in kept.items())
    tell(
        f"{store.folder}: {where}: about {_size(whole / n_examples)} an example, at most {_size(whole)} in all, of "
        f"which {_size(missing)} are to be written"
    )
    _check_room(store, whole, missing, settings.limit)
    return cache


def check_places(recipe: Recipe, learnt: Mapping[str, Mixture]) -> None:
    """Refuse to keep the states of towers that several ranks hold in parts.

    Each rank computes the entries that its own rows lack, so that a tower must run on one rank without the others.

    Args:
        recipe: of a run on several ranks.
        learnt: what each phase learns from, by its label.

    Raises:
        ZippkitError: names each phase and tower.
    """
    wrong: list[str] = []
    for label, key_path, phase in recipe.main_phases:
        if phase.cache_sources is None or recipe.parallel.shard != "all":
            continue
        for name in _kept_towers(recipe, phase, learnt[label].parts):
            if (place := recipe.parallel.place_of(recipe.spec.towers[name].place, trained=False)) != "replicate":
                wrong.append(
                    f"{dotted((*key_path, 'cache_sources'))}: the states of tower {name!r} are computed by each rank "
                    f"for its own rows, and it is held in parts ({place}), which all ranks must bring together at "
                    f"once; expected `towers.{name}.place: replicate` in the spec, or no cache_sources"
                )
    if wrong:
        raise ZippkitError("\n".join(wrong))


def _kept_towers(recipe: Recipe, phase: Phase, tasks: Sequence[TaskData]) -> list[str]:
    """The towers whose states a phase keeps, found on a model without values; named by their owners."""
    zipped = compile(recipe.spec, device="meta")
    rest = Rest(phase.freeze) if isinstance(phase, Stage) else Rest()
    rest.begin(zipped.model)
    zipped.model.train()
    cache = SourceCache(zipped, StateStore(Path(), DTYPES["fp32"]), CPU(), phase.precision)
    batches = (batch for task in tasks for batch in _looked_at(zipped, task))
    return sorted({zipped.model.owner(name) for batch in batches for name in cache.kept(batch)})


def _looked_at(zipped: Composition, task: TaskData) -> list[Batch]:
    """Some examples, evenly spread, each by itself."""
    which = np.linspace(0, len(task) - 1, min(LOOKED_AT, len(task))).round().astype(int).tolist()
    return [zipped.collate([task.segments(i)], 1, task.ids([i]), task.task.multimodal) for i in which]


def _computed(cache: SourceCache, batch: Batch) -> list[str]:
    return [f"{name} is computed at every step: {reason}" for name, reason in cache.computed(batch).items()]


def _bytes(entries: Sequence[Entry], there: bool) -> int:
    return sum(entry.n_bytes for entry in entries if there or not entry.there)


def _check_room(store: StateStore, whole: float, missing: float, limit: float | None) -> None:
    """Raise ZippkitError where the states would take more than they may."""
    less = "another folder (`cache_sources: {folder: ...}`), `dtype: bf16` for half of it, or links of fewer sites"
    if limit is not None and whole > limit * 1e9:
        raise ZippkitError(
            f"cache_sources.limit: the states of all examples take about {_size(whole)}, and {_size(limit * 1e9)} "
            f"are allowed; expected a higher limit, {less}"
        )
    free = store.room()
    if missing > free:
        raise ZippkitError(
            f"cache_sources: {_size(missing)} of states are to be written to {store.folder}, where "
            f"{_size(free)} are free; expected {less}"
        )


def _size(n_bytes: float) -> str:
    """A number of bytes as people say it."""
    power = min(3, int(np.log10(max(n_bytes, 1)) // 3))
    return f"{n_bytes / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB')[power]}"
