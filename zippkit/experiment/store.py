"""Where an experiment's runs keep their things: one run folder and one record for each recipe, towers by hash.

::

    cells/<hash>/          the run, as `zippkit train` writes it
    cells/<hash>.json      what became of it: its evaluations by split, or its error
    towers/<hash>/         pre-trained towers, for every run that would pre-train the same
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from zippkit.evaluation.evaluation_file import parse_evaluation
from zippkit.experiment.hashes import tower_hash
from zippkit.spec.kinds import Strict
from zippkit.spec.recipe import Recipe
from zippkit.system.files import appearing, locked
from zippkit.training.run_folder import RunFolder


class Record(Strict):
    """Record of a run; it is written whole or not at all."""

    status: Literal["done", "failed"]
    error: str = ""
    seconds: float = 0.0
    evaluations: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Content of `evaluation.json`, by split."""
    heard: list[str] = Field(default_factory=list)
    """Splits that were evaluated with the scorer there: what they pass over has other reasons."""
    versions: list[str] = Field(default_factory=list)
    """Versions of zippkit that trained or evaluated it; empty in older records."""

    def lacks(self, splits: tuple[str, ...]) -> list[str]:
        """Splits that are still to be evaluated."""
        return [split for split in splits if split not in self.evaluations]

    def unheard(self, splits: tuple[str, ...]) -> list[str]:
        """Splits with tasks that were passed over, maybe for want of the scorer."""
        known = [split for split in splits if split in self.evaluations and split not in self.heard]
        return [split for split in known if parse_evaluation(self.evaluations[split]).skipped]


@dataclass(frozen=True)
class Store:
    """The folder of all experiments' runs."""

    path: Path

    def run(self, key: str) -> RunFolder:
        """Folder of the run of that key."""
        return RunFolder(self.path / "cells" / key)

    def record(self, key: str) -> Record | None:
        """None before the run has ended for the first time."""
        data = RunFolder(self.path / "cells").read_json(f"{key}.json")
        return None if data is None else Record.model_validate(data)

    def write(self, key: str, record: Record) -> None:
        """Write the record of a run."""
        folder = self.path / "cells"
        folder.mkdir(parents=True, exist_ok=True)
        RunFolder(folder).write_json(f"{key}.json", record.model_dump())

    def begin(self, key: str, recipe: Recipe) -> RunFolder:
        """A run, started now or before; equal keys are one run, so paths in its recipe follow what was moved since."""
        run = self.run(key)
        if run.recipe_file.exists():
            run.rewrite(recipe)
        run.keep_recipe(recipe)
        return run

    def lend_towers(self, recipe: Recipe, run: RunFolder) -> None:
        """Give a run the towers that another one has pre-trained in the same way."""
        for name in recipe.pretrain:
            kept = self._tower(recipe, name)
            if kept.exists() and not run.tower(name).exists():
                _copy(kept, run.tower(name))

    def keep_towers(self, recipe: Recipe, run: RunFolder) -> None:
        """Keep the towers that a run has pre-trained."""
        for name in recipe.pretrain:
            kept = self._tower(recipe, name)
            if not kept.exists():
                _copy(run.tower(name), kept)

    def _tower(self, recipe: Recipe, name: str) -> Path:
        return self.path / "towers" / tower_hash(recipe, name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process from running the same cells; the system lets go of a killed one's lock.

        Raises:
            ZippkitError: another process is at work here.
        """
        with locked(self.path, "runs experiments"):
            yield


def _copy(source: Path, target: Path) -> None:
    """Copy a folder; it appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with appearing(target) as new:
        shutil.copytree(source, new)
