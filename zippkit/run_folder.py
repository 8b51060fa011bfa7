"""Where a run keeps its things.

::

    recipe.yaml           the recipe with its spec, as it was started
    tokenizers/           what turned the data into tokens, and turns tokens back
    towers/<name>/        towers pre-trained by this run
    checkpoints/<phase>/  step-000200, ... (the last two)
    model/                the finished composition
    metrics.jsonl, tensorboard/, evaluation.json, report.html
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from zippkit.data.dataset import Dataset, Tokenizer
from zippkit.data.manifest import MANIFEST, read_manifest
from zippkit.errors import ZippkitError
from zippkit.recipe import Recipe, dump, load_recipe

KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def _tokenizers(self) -> Path:
        return self.path / "tokenizers"

    def tower(self, name: str) -> Path:
        return self.path / "towers" / name

    def checkpoint(self, phase: str, step: int) -> Path:
        return self.path / "checkpoints" / phase / f"step-{step:06d}"

    def checkpoints(self, phase: str) -> list[Path]:
        """Complete checkpoints of a phase, oldest first."""
        return sorted((self.path / "checkpoints" / phase).glob("step-*"))

    def drop_old_checkpoints(self, phase: str) -> None:
        for old in self.checkpoints(phase)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def recipe(self) -> Recipe:
        """The recipe that the run was started with.

        Raises:
            ZippkitError: no run is there.
        """
        if not self.recipe_file.exists():
            raise ZippkitError(f"{self.path}: no run is there (recipe.yaml is missing)")
        return load_recipe(self.recipe_file)

    def begin(self, recipe: Recipe) -> None:
        """Start the run, or find that it is the same one that was started before.

        Raises:
            ZippkitError: the folder holds something else; nothing is written over.
        """
        text = yaml.safe_dump(dump(recipe), sort_keys=False)
        if self.recipe_file.exists():
            there = self.recipe_file.read_text()
            if there != text:
                differs = _first_difference(there, text)
                raise ZippkitError(f"{self.path}: holds the run of another recipe ({differs}); choose another --out")
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise ZippkitError(f"{self.path}: exists and is not a run; choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".recipe.{os.getpid()}.tmp"
        temporary.write_text(text)
        temporary.replace(self.recipe_file)

    def keep_tokenizers(self, dataset: Dataset) -> None:
        """Copy the dataset's tokenizers and what its manifest says of them, so that the run stands alone."""
        if self._tokenizers.exists():
            return
        temporary = self.path / f".tokenizers.{os.getpid()}.tmp"
        temporary.mkdir()
        shutil.copyfile(dataset.path / MANIFEST, temporary / MANIFEST)
        for modality in dataset.manifest.modalities.values():
            if modality.file:
                (temporary / modality.file).parent.mkdir(exist_ok=True)
                shutil.copyfile(dataset.path / modality.file, temporary / modality.file)
        temporary.rename(self._tokenizers)

    def fingerprints(self) -> dict[str, str | None]:
        """Each modality's tokenizer, by what decides the meaning of its ids."""
        return Dataset(self._tokenizers, read_manifest(self._tokenizers)).fingerprints

    def tokenizer(self, modality: str) -> Tokenizer:
        """What turned the training data's ``modality`` into tokens.

        Raises:
            DataError: no such modality, or it came as plain ids.
        """
        return Dataset(self._tokenizers, read_manifest(self._tokenizers)).tokenizer(modality)


def _first_difference(there: str, here: str) -> str:
    for old, new in zip(there.splitlines(), here.splitlines(), strict=False):
        if old != new:
            return f"{old.strip()!r} there, {new.strip()!r} here"
    return "one is longer than the other"
