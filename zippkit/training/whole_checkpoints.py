"""Checks that the checkpoints of an earlier start are whole; if not, the message says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from zippkit.checkpoint.manifest import check_whole, read_checkpoint_manifest
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.model.weights import check_hashes
from zippkit.spec.recipe import Recipe
from zippkit.training.going_on import planned
from zippkit.training.run_folder import RunFolder


def check_tower(folder: Path) -> None:
    """Compare a pre-trained tower with its hashes.

    Raises:
        CheckpointError: it was damaged or changed since.
    """
    try:
        check_hashes(folder)
    except CheckpointError as error:
        fix = f"remove {folder}, and the tower is pre-trained again, from the last checkpoint"
        raise CheckpointError(f"{error}; {fix}") from None


def check_model(run: RunFolder, recipe: Recipe) -> None:
    """Compare the run's finished model with its hashes.

    Raises:
        CheckpointError: it was damaged or changed since; names a checkpoint that was not.
    """
    try:
        check_whole(run.model)
    except CheckpointError as error:
        older = newest_whole(run.checkpoints(recipe.main_phases[-1].label))
        fix = "no checkpoint of the run is whole: choose another --out"
        if older:
            fix = f"the checkpoint {older.name} is whole: remove {run.model}, and the run goes on from there"
        raise CheckpointError(f"{error}; {fix}") from None


def is_finished(run: RunFolder, recipe: Recipe) -> bool:
    """Whether the run's model is what its recipe, which may have changed, says that it ends with.

    Raises:
        ZippkitError: it is not, and there is no checkpoint to go on from.
    """
    told, plan = read_checkpoint_manifest(run.model), planned(recipe)
    # Of older versions: a run ended with its last step, and with nothing else.
    if told.get("planned", {"steps": told.get("step")}) == plan:
        return True
    if not run.reached(recipe):
        raise ZippkitError(
            f"{run.path}: is finished, and its checkpoints are gone, so it cannot go on; choose another --out, and in "
            f"its recipe `start_from: {run.path}`"
        )
    return False


def newest_whole(checkpoints: Sequence[Path]) -> Path | None:
    """Return the last of the checkpoints whose files are what was written."""
    for folder in reversed(checkpoints):
        with suppress(CheckpointError):
            check_whole(folder)
            return folder
    return None


@contextmanager
def advising_older(checkpoints: Sequence[Path]) -> Iterator[None]:
    """Where the newest checkpoint turns out to be damaged, let the error say which older one is not."""
    try:
        yield
    except CheckpointError as error:
        older = newest_whole(checkpoints)
        if older in (None, checkpoints[-1]):
            raise
        fix = f"the older checkpoint {older.name} is whole: remove {checkpoints[-1]} to go on from there"
        raise CheckpointError(f"{error}; {fix}") from None
