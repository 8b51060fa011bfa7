"""Where a run keeps its things.

::

    recipe.yaml           the recipe with its spec, as it is in effect
    history.jsonl         when the run was started, and which changes of its recipe it went on with
    inputs.json           what its paths led to, by hash
    tokenizers/           what turned the data into tokens, and turns tokens back
    towers/<name>/        towers pre-trained by this run, and frozen ones that have no other source
    checkpoints/<phase>/  step-000200, ... (the last two); a phase is pretrain.<tower>, train, or train.<stage>
    best/<phase>/         step-000150: the best one by a dev metric
    model/                the finished composition
    source_states/        states of frozen towers, if `cache_sources` asks for them; may be deleted at any time
    evaluations/          scores of other settings than the recipe's
    earlier/step-000200/  what was said of a finished model before the run went on
    metrics.jsonl, tensorboard/, evaluation.json, certificates.json, seconds.json, report.html
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zippkit.checkpoint.manifest import read_checkpoint_manifest
from zippkit.data.dataset import Dataset, Tokenizer
from zippkit.data.manifest import read_dataset_manifest
from zippkit.errors import ZippkitError
from zippkit.loading import load_recipe
from zippkit.spec.recipe import Recipe
from zippkit.spec.yaml_document import dotted
from zippkit.system.files import (
    LOCK,
    SCRATCH,
    locked,
    parse_json,
    remove_abandoned,
    write_json,
    write_text,
)
from zippkit.training.going_on import Change, accept, remember
from zippkit.training.kept_tokenizers import keep_tokenizers
from zippkit.training.run_recipe import changes, input_hashes, recipe_text

KEPT_CHECKPOINTS = 2
OF_THE_MODEL = ("evaluation.json", "evaluations", "certificates.json", "report.html")
"""Files of a run that speak of its finished model."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """The recipe, as the run was started with it."""
        return self.path / "recipe.yaml"

    @property
    def model(self) -> Path:
        """The finished composition."""
        return self.path / "model"

    @property
    def _tokenizers(self) -> Path:
        return self.path / "tokenizers"

    def tower(self, name: str) -> Path:
        """Return the folder of a tower that the run holds."""
        return self.path / "towers" / name

    def checkpoint(self, phase: str, step: int) -> Path:
        """Return the folder of one checkpoint of a phase."""
        return self.path / "checkpoints" / phase / f"step-{step:06d}"

    def best(self, phase: str) -> Path:
        """Return the folder of a phase's best checkpoints: of one, but while a better one is written."""
        return self.path / "best" / phase

    def checkpoints(self, phase: str) -> list[Path]:
        """Complete checkpoints of a phase, oldest first."""
        found = (self.path / "checkpoints" / phase).glob("step-*")
        return sorted(found, key=lambda folder: (len(folder.name), folder.name))

    def drop_old_checkpoints(self, phase: str) -> None:
        """Keep the last few, and nothing of those that a kill left half written."""
        remove_abandoned(self.path / "checkpoints" / phase)
        for old in self.checkpoints(phase)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def recipe(self) -> Recipe:
        """The recipe that the run was started with.

        Raises:
            ZippkitError: no run is there.
        """
        if not self.recipe_file.exists():
            raise ZippkitError(f"{self.path}: no run is there (recipe.yaml is missing)")
        return load_recipe(self.recipe_file, started=True)

    @contextmanager
    def locked(self, doing: str) -> Iterator[None]:
        """Keep other processes out of the run while this one works in it (see `zippkit.files.locked`).

        Raises:
            ZippkitError: another process is at work there, or the folder holds something that is not a run.
        """
        self._refuse_another_folder()
        with locked(self.path, doing):
            yield

    def _refuse_another_folder(self) -> None:
        if self.recipe_file.exists() or not self.path.exists():
            return
        if not (self.path.is_dir() and all(_is_temporary(file) for file in self.path.iterdir())):
            raise ZippkitError(f"{self.path}: exists and is not a run; choose another --out")

    def keep_recipe(self, recipe: Recipe) -> list[Change]:
        """Start the run, or go on with it; its recipe may have changed where `zippkit.training.going_on` says so.

        Returns:
            The changes.

        Raises:
            ZippkitError: the folder holds something else; nothing is written over.
        """
        here, reached = recipe_text(recipe, self.path), self.reached(recipe)
        if not self.recipe_file.exists():
            self._refuse_another_folder()
            self.path.mkdir(parents=True, exist_ok=True)
            self.rewrite(recipe)
            self.write_json("inputs.json", input_hashes(recipe))
            remember(self.path, "", here, [], reached)
            return []
        there = self.recipe_file.read_text(errors="replace")
        if there == here:
            return []
        found = changes(there, here, recipe, self.read_json("inputs.json") or {})
        accept(self.path, found, reached)
        if found:
            remember(self.path, there, here, found, reached)
        self.rewrite(recipe)
        return found

    def reached(self, recipe: Recipe) -> dict[str, int]:
        """Steps that the newest checkpoint of each main phase has taken, by the phase's place in the recipe."""
        saved = {dotted(each.key_path): self.checkpoints(each.label) for each in recipe.main_phases}
        return {place: int(found[-1].name.removeprefix("step-")) for place, found in saved.items() if found}

    def rewrite(self, recipe: Recipe) -> None:
        """Write the recipe as it is now: the run or what its paths lead to was moved."""
        write_text(self.recipe_file, recipe_text(recipe, self.path))

    def read_json(self, name: str) -> Any:
        """A JSON file of the run; None where it has not been written yet.

        Raises:
            ZippkitError: somebody else wrote it.
        """
        file = self.path / name
        try:
            return parse_json(file.read_bytes()) if file.exists() else None
        except ValueError as error:
            raise ZippkitError(f"{file}: not JSON: {error}") from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, whole or not at all."""
        write_json(self.path / name, value)

    def set_scores_aside(self) -> None:
        """Move what is said of a finished model that another one will replace into ``earlier/``."""
        step = read_checkpoint_manifest(self.model).get("step", 0)
        for name in OF_THE_MODEL:
            if (self.path / name).exists():
                folder = self.path / "earlier" / f"step-{step:06d}"
                folder.mkdir(parents=True, exist_ok=True)
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                (self.path / name).replace(folder / name)

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Keep how long a phase took the last time it ran."""
        known = self.read_json("seconds.json") or {}
        self.write_json("seconds.json", {**known, phase: seconds})

    def keep_tokenizers(self, datasets: Mapping[str, Dataset]) -> None:
        """Copy the datasets' tokenizers and what their manifests say of them, so that the run stands alone.

        Raises:
            DataError: the run was started with another dataset.
        """
        keep_tokenizers(self._tokenizers, datasets, self.path)

    def fingerprints(self) -> dict[str, str | None]:
        """Each modality's tokenizer, by what decides the meaning of its ids; None where it came as plain ids."""
        return Dataset(self._tokenizers, read_dataset_manifest(self._tokenizers)).fingerprints

    def tokenizers(self) -> dict[str, Tokenizer]:
        """Return the tokenizers of the training data by modality; plain ids and waveforms have none."""
        dataset = Dataset(self._tokenizers, read_dataset_manifest(self._tokenizers))
        return {name: dataset.tokenizer(name) for name, known in dataset.fingerprints.items() if known is not None}

    def tokenizer(self, name: str) -> Tokenizer | None:
        """Return the tokenizer of one modality.

        None where it came as plain ids or waveforms, or is not of the data, or where no run is there.
        """
        if not self._tokenizers.exists():
            return None
        dataset = Dataset(self._tokenizers, read_dataset_manifest(self._tokenizers))
        return None if dataset.fingerprints.get(name) is None else dataset.tokenizer(name)

    def sample_rates(self) -> dict[str, int]:
        """Modalities that were waveforms in the training data, and their samples a second."""
        modalities = read_dataset_manifest(self._tokenizers).modalities
        return {name: column.sample_rate for name, column in modalities.items() if column.sample_rate is not None}


def _is_temporary(file: Path) -> bool:
    """Left behind by a start that was killed."""
    return file.name == LOCK or file.name.endswith(SCRATCH)
