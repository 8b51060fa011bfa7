"""Towers that a checkpoint does not hold but names: where their weights are, and by which hashes they are known."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from zippkit.checkpoint.together import ALONE, Together
from zippkit.errors import CheckpointError
from zippkit.model.bare import has_no_values, mapped_weights
from zippkit.model.dtypes import DTYPES, dtype_of
from zippkit.model.new_tower import new_tower
from zippkit.model.tower import Tower
from zippkit.model.weights import file_hash, fingerprint, hash_of, state_hash, weight_files
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.parts import CHECKPOINT_MANIFEST
from zippkit.spec import registry
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import TOWER_FILE, TowerConfig
from zippkit.spec.tower_spec import TowerSpec

TOWERS = "towers"
"""Folder of towers, in runs and in checkpoints."""
COMPANIONS = (
    *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "chat_template.jinja"),
)
"""Files that say how a model is fed and what its tokens are, whatever its weights have become."""
BESIDE_WEIGHTS = ("model.safetensors.index.json", TOWER_FILE, "config.json", *COMPANIONS)
"""Files that are copied along with a folder's weights: those that say how to read them, and the companions."""


@dataclass(frozen=True)
class Reference:
    """A frozen tower by the location and the hashes of its weights."""

    source: Path
    """A safetensors file, or a folder as `zippkit.model.weights.read_tensors` reads it."""
    files: Mapping[str, str]
    """SHA-256 of each file of weights, by name."""
    tensors: str
    """SHA-256 of the tower's tensors once they are loaded (`zippkit.model.weights.state_hash`)."""


def frozen_towers(spec: CompositionSpec) -> list[str]:
    """The towers of which the spec trains no parameter."""
    return [name for name, tower in spec.towers.items() if tower.frozen_whole]


def source_of(spec: TowerSpec) -> Path | None:
    """Where the spec says that a tower's pre-trained weights are."""
    path = spec.weights or spec.settings.weights_path()
    return None if path is None else Path(os.path.abspath(path))  # noqa: PTH100 (a link stays what it is called)


def find_references(spec: CompositionSpec, model: ZippedModel, sources: Mapping[str, Path]) -> dict[str, Reference]:
    """The wholly frozen towers whose tensors are, bit for bit, what their sources hold.

    A tower that has no values yet is none of them (`mapped_reference`).
    """
    found: dict[str, Reference] = {}
    for name in frozen_towers(spec):
        if name in sources and not has_no_values(model.tower(name)):
            reference = refer(spec.towers[name], sources[name])
            if reference is not None and reference.tensors == state_hash(model.tower(name).state_dict()):
                found[name] = reference
    return found


def refer(spec: TowerSpec, source: Path) -> Reference | None:
    """A reference to the tower that the source holds now; None where there is none that fits."""
    try:
        stamps = tuple(_stamp(file) for file in weight_files(source))
        dtype = dtype_of(spec, source)
        how = (spec.kind, spec.settings.model_dump_json(), dtype)
        tensors = _loaded_hash(_Source(source, *how, stamps, spec.settings))
    except (CheckpointError, OSError):
        return None
    return Reference(source, {Path(path).name: _known_hash(path, *rest) for path, *rest in stamps}, tensors)


def mapped_reference(tower: Tower, source: Path, together: Together = ALONE) -> tuple[Reference, dict[str, str]]:
    """A reference to what a tower without values will be filled with, and the hash of each of its tensors.

    Ranks divide the reading among them, and none holds more than one tensor.
    """
    found, own = mapped_weights(tower, source), tower.state_dict()
    if found is None:
        raise CheckpointError(f"{source}: other tensors than when the tower was built")
    names, files = sorted(found), weight_files(source)

    def mine() -> tuple[dict[str, str], dict[str, str]]:
        tensors = ((name, found[name].to(own[name].dtype)) for name in names[together.rank :: together.size])
        return fingerprint(tensors), {file.name: known_hash(file) for file in files[together.rank :: together.size]}

    parts = together.each(mine)
    tensors = {name: digest for part, _ in parts for name, digest in part.items()}
    hashes = {name: digest for _, part in parts for name, digest in part.items()}
    return Reference(source, {file.name: hashes[file.name] for file in files}, hash_of(tensors)), tensors


def _stamp(file: Path) -> tuple[str, int, int]:
    """By which a file that was hashed before is known."""
    stat = file.stat()
    return str(file), stat.st_size, stat.st_mtime_ns


def known_hash(file: Path) -> str:
    """SHA-256 of a file, which is read once as long as it stays the same."""
    return _known_hash(*_stamp(file))


@lru_cache(maxsize=256)
def _known_hash(path: str, *_stamp: int) -> str:
    return file_hash(Path(path))


@dataclass(frozen=True)
class _Source:
    """A tower's weights, and how they are loaded."""

    path: Path
    kind: str
    config: str
    dtype: str
    stamps: tuple[tuple[str, int, int], ...]
    settings: TowerConfig = field(compare=False)


@lru_cache(maxsize=256)
def _loaded_hash(source: _Source) -> str:
    """Hash of the tensors of a tower that is loaded from the source, in a tower of its own."""
    cls: type[Tower] = registry.implementation(registry.TOWERS, source.kind)
    # Building draws new parameters, and whoever saves may be in the middle of training.
    with torch.random.fork_rng(devices=[]):
        tower = new_tower(cls, source.settings, DTYPES[source.dtype], source.path)
    return state_hash(tower.state_dict())


def in_a_checkpoint(source: Path) -> bool:
    """Whether a tower stands inside a checkpoint, which may be replaced or dropped at any time."""
    return source.parent.name == TOWERS and (source.parent.parent / CHECKPOINT_MANIFEST).is_file()


def in_a_run(source: Path) -> bool:
    """Whether a tower stands inside a run folder or a checkpoint."""
    return in_a_checkpoint(source) or (
        source.parent.name == TOWERS and (source.parent.parent / "recipe.yaml").is_file()
    )


def copy_source(source: Path, folder: Path) -> None:
    """Copy a tower's files byte for byte; a single file becomes ``model.safetensors``.

    Raises:
        CheckpointError: no weights are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        shutil.copyfile(source, folder / "model.safetensors")
        copy_companions(source, folder)
        return
    for file in weight_files(source):
        shutil.copyfile(file, folder / file.name)
    _copy_named(BESIDE_WEIGHTS, source, folder)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the files beside a tower's weights that stay true when these are trained.

    Beside a single file, they are of that file only where it is the folder's ``model.safetensors``.
    """
    if source.is_dir() or source.name == "model.safetensors":
        _copy_named(COMPANIONS, source if source.is_dir() else source.parent, folder)


def _copy_named(names: Iterable[str], source: Path, folder: Path) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def check_references(references: Mapping[str, Reference], folder: Path) -> None:
    """Every tower that a checkpoint names must be the one that it names.

    Raises:
        CheckpointError: names every tower that is missing or is another one, with hashes and what to do.
    """
    wrong = {name: problem for name, reference in references.items() if (problem := _problem(reference))}
    if wrong:
        lines = [f"{folder}: tower {name!r} {problem}" for name, problem in wrong.items()]
        paths = ", ".join(f'"{name}": PATH' for name in wrong)
        fix = f'put the right weights there, or say where they are: zippkit.load("{folder}", towers={{{paths}}})'
        raise CheckpointError("\n".join([*lines, fix]))


def _problem(reference: Reference) -> str:
    """Describe every mismatch of a reference's files; empty if there is none."""
    source = reference.source
    if not source.exists():
        return f"is kept at {source}, where nothing is; expected weights of SHA-256 {short_hashes(reference.files)}"
    try:
        seen = {file.name: file_hash(file) for file in weight_files(source)}
    except (CheckpointError, OSError) as error:
        return f"is kept at {source}, which cannot be read: {error}"
    # A file may have another name, but not other bytes.
    if sorted(seen.values()) == sorted(reference.files.values()):
        return ""
    return f"is another one at {source}: SHA-256 {short_hashes(seen)} there, expected {short_hashes(reference.files)}"


def short_hashes(files: Mapping[str, str]) -> str:
    """Files and the beginnings of their SHA-256, for a message."""
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(f"{digest[:16]}... ({name})" for name, digest in list(files.items())[:3]) + more


def as_json(reference: Reference, source: str) -> dict[str, Any]:
    """The manifest's entry of a reference."""
    return {"source": source, "files": dict(reference.files), "tensors": reference.tensors}


def from_json(data: Any, folder: Path) -> Reference:
    """Read the manifest's entry of a reference; its path is relative to the checkpoint's folder, or absolute.

    Raises:
        ValueError: something is missing.
    """
    source, files, tensors = data.get("source"), data.get("files"), data.get("tensors")
    if not (isinstance(source, str) and isinstance(files, dict) and files and isinstance(tensors, str)):
        raise ValueError("expected source, files and tensors")
    return Reference(Path(os.path.abspath(folder / source)), files, tensors)  # noqa: PTH100
