"""Checkpoints: a folder of safetensors, spec and manifest, complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from zippkit.errors import CheckpointError, SpecError
from zippkit.loading import load_spec
from zippkit.spec import CompositionSpec
from zippkit.tower import Tower
from zippkit.weights import load_into, read_tensors, write_tensors

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    spec: CompositionSpec
    """With every config written out and no path to weights, so that it stands alone."""
    tensors: dict[str, Tensor]
    """The model's state."""
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    """Plain data of whoever wrote it: step, tokenizer fingerprints, hashes of frozen tensors."""


def standalone(spec: CompositionSpec) -> CompositionSpec:
    """The spec with every tower's config written out and without paths to weights."""
    towers = {
        name: tower.model_copy(
            update={
                "config": tower.settings.model_dump(mode="json", exclude={"frame"}),
                "weights": None,
                "frame": tower.settings.frame,
            }
        )
        for name, tower in spec.towers.items()
    }
    data = spec.model_copy(update={"towers": towers}).model_dump(mode="json", by_alias=True, exclude_none=True)
    return CompositionSpec.model_validate(data)


def spec_text(spec: CompositionSpec) -> str:
    """The standalone spec as YAML."""
    data = standalone(spec).model_dump(mode="json", by_alias=True, exclude_none=True)
    return str(yaml.safe_dump(data, sort_keys=False))


def difference(there: CompositionSpec, here: CompositionSpec) -> str:
    """The first lines in which two specs differ; empty where they are the same composition."""
    old, new = spec_text(there).splitlines(), spec_text(here).splitlines()
    pairs = [(a, b) for a, b in zip(old, new, strict=False) if a != b]
    if pairs:
        return f"{pairs[0][0].strip()!r} there, {pairs[0][1].strip()!r} here"
    return "" if len(old) == len(new) else "towers or links are added or missing"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write under a temporary name, then rename; an earlier checkpoint is replaced in the end or not at all.

    Raises:
        CheckpointError: something else is there.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        read_manifest(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_tensors(temporary / "model.safetensors", checkpoint.tensors)
    if checkpoint.optimizer:
        write_tensors(temporary / "optimizer.safetensors", checkpoint.optimizer)
    (temporary / "spec.yaml").write_text(spec_text(checkpoint.spec))
    files = {file.name: _digest(file) for file in sorted(temporary.iterdir())}
    manifest = {"format": FORMAT, "files": files, **checkpoint.extra}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2))
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a whole checkpoint.

    Raises:
        CheckpointError: not a checkpoint, cut short, or changed since it was written.
    """
    manifest = read_manifest(folder)
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if _digest(folder / name) != digest:
            raise CheckpointError(
                f"{folder / name}: differs from its hash in {MANIFEST}; cut short or changed since it was written"
            )
    try:
        spec = load_spec(folder / "spec.yaml")
    except SpecError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    optimizer = folder / "optimizer.safetensors"
    extra = {key: value for key, value in manifest.items() if key not in ("format", "files")}
    tensors = read_tensors(folder / "model.safetensors")
    return Checkpoint(spec, tensors, read_tensors(optimizer) if optimizer.exists() else {}, extra)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: none there, or of another format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except OSError as error:
        raise CheckpointError(f"{folder}: not a checkpoint ({MANIFEST} is missing)") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / MANIFEST}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        seen = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise CheckpointError(f"{folder / MANIFEST}: not a checkpoint's; format {seen!r}, expected {FORMAT}")
    hashes = manifest.get("files")
    if not isinstance(hashes, dict) or not {"model.safetensors", "spec.yaml"} <= hashes.keys():
        raise CheckpointError(f"{folder / MANIFEST}: tells no hash of model.safetensors or spec.yaml")
    return manifest


def restore(model: nn.Module, checkpoint: Checkpoint, spec: CompositionSpec, source: Path) -> None:
    """Load a checkpoint's tensors into the model of ``spec``.

    Raises:
        CheckpointError: the checkpoint is of another composition.
    """
    differs = difference(checkpoint.spec, spec)
    if differs:
        raise CheckpointError(f"{source}: a checkpoint of another composition: {differs}")
    load_into(model, checkpoint.tensors, str(source))


def write_tower(folder: Path, tower: Tower, kind: str) -> None:
    """One tower by itself: ``model.safetensors`` and ``tower.json``, which a spec's ``weights`` can name."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tower.state_dict())
    config = tower.config.model_dump(mode="json")
    text = json.dumps({"kind": kind, "config": config}, indent=2)
    temporary = folder / ".tower.json.tmp"
    temporary.write_text(text)
    temporary.replace(folder / "tower.json")
