"""How the main phase of a run begins: with towers that were pre-trained, and with what another run has learnt."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from zippkit.checkpoint.frozen_hashes import check_frozen
from zippkit.checkpoint.manifest import read_checkpoint_manifest
from zippkit.checkpoint.references import Reference, copy_source, find_references, frozen_towers, in_a_run
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.composition import Composition, compile, load
from zippkit.data.dataset import Dataset
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.model.weights import file_hash, weight_files
from zippkit.plan.parts import checkpoint_folder
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.recipe import Recipe
from zippkit.system.files import appearing
from zippkit.training.run_folder import RunFolder


def trained_spec(recipe: Recipe, run: RunFolder) -> CompositionSpec:
    """The recipe's spec with the towers that the run pre-trained as weights."""
    towers = {
        name: tower.model_copy(update={"weights": run.tower(name)}) if name in recipe.pretrain else tower
        for name, tower in recipe.spec.towers.items()
    }
    data = {name: tower.model_dump(by_alias=True, exclude_unset=True) for name, tower in towers.items()}
    return CompositionSpec.model_validate(
        {**recipe.spec.model_dump(by_alias=True, exclude_unset=True), "towers": data}, strict=False
    )


def bare_towers(recipe: Recipe, n_ranks: int) -> list[str]:
    """The frozen towers of which several ranks read their rows alone, and never the whole.

    Packing, and a cache of states, run them before they are shared; what another run has learnt is taken over whole.
    """
    phases = [each.phase for each in recipe.main_phases]
    whole = recipe.start_from or any(phase.pack or phase.cache_sources for phase in phases)
    if n_ranks == 1 or recipe.parallel.shard != "all" or whole:
        return []
    towers = recipe.spec.towers
    return [name for name in frozen_towers(recipe.spec) if towers[name].has_weights and not towers[name].share_with]


def starting_point(recipe: Recipe, run: RunFolder, bare: Collection[str] = ()) -> Composition:
    """The composition as it is before the main phase's first step.

    Raises:
        CheckpointError: what the recipe starts from is gone, or does not fit.
    """
    spec = trained_spec(recipe, run)
    if recipe.start_from is None:
        return compile(spec, seed=recipe.seed, bare=bare)
    return load(recipe.start_from, spec=spec, seed=recipe.seed)


def begun(recipe: Recipe, run: RunFolder) -> int:
    """Index of the main phase with which the run goes on: the last that has a checkpoint, or the first."""
    labels = [each.label for each in recipe.main_phases]
    return max((i for i, label in enumerate(labels) if run.checkpoints(label)), default=0)


def composition_to_train(recipe: Recipe, run: RunFolder, bare: Collection[str] = ()) -> Composition:
    """The composition to train, or to load a checkpoint of a main phase into; towers may be left ``bare``."""
    if run.checkpoints(recipe.main_phases[begun(recipe, run)].label):
        return compile(trained_spec(recipe, run), seed=recipe.seed, load_weights=False, bare=bare)
    zipped = starting_point(recipe, run, bare)
    if zipped.transfer is not None:
        print(f"started from {recipe.start_from}", zipped.transfer, sep="\n", file=sys.stderr)
    return _with_own_towers(zipped, run)


def _with_own_towers(zipped: Composition, run: RunFolder) -> Composition:
    """Write frozen towers that have no source, or one in another run, into this run once.

    Its checkpoints need not repeat them, and it can be moved.

    Raises:
        ZippkitError: a frozen tower is not what its first source held, or that source is gone.
    """
    check_frozen(zipped.origins.completed(zipped.spec, zipped.model).tensors, zipped.spec, zipped.model)
    references = find_references(zipped.spec, zipped.model, zipped.sources)
    sources = dict(zipped.sources)
    for name in (name for name in frozen_towers(zipped.spec) if name not in zipped.bare):
        taken = zipped.transfer is not None and f"towers.{name}" in zipped.transfer.taken
        if name in sources and name not in references:
            raise CheckpointError(f"tower {name!r} is frozen, but its source {sources[name]} is gone or has changed")
        if name not in references or (taken and in_a_run(sources[name])):
            folder = run.tower(zipped.spec.towers[name].share_with or name)
            sources[name] = _write_once(zipped, name, folder, references.get(name))
    return replace(zipped, sources=sources)


def _write_once(zipped: Composition, name: str, folder: Path, reference: Reference | None) -> Path:
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with appearing(folder) as new:
            if reference is not None:
                copy_source(reference.source, new)
            else:
                kind = zipped.spec.towers[name].kind
                write_tower(new, zipped.model.tower(name), kind, zipped.sources.get(name))
    if reference is not None and sorted(map(file_hash, weight_files(folder))) != sorted(reference.files.values()):
        raise CheckpointError(
            f"{folder}: differs from {reference.source}, of which it is a copy; remove it and start again"
        )
    return folder.absolute()


def check_start_from(recipe: Recipe, datasets: Iterable[Dataset]) -> None:
    """The tokens of towers that are taken over must mean what they meant.

    Raises:
        ZippkitError: another tokenizer.
    """
    if recipe.start_from is None:
        return
    known = read_checkpoint_manifest(checkpoint_folder(recipe.start_from)).get("tokenizers", {})
    for dataset in datasets:
        for name, fingerprint in dataset.fingerprints.items():
            if name in recipe.spec.towers and known.get(name, fingerprint) != fingerprint:
                raise ZippkitError(
                    f"{recipe.start_from}: tower {name!r} was trained with another tokenizer than that of "
                    f"{dataset.path}; prepare the data with the one that its run keeps"
                )
