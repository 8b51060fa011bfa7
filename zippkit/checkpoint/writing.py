"""Write a checkpoint, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from zippkit.checkpoint.checkpoint import Checkpoint, tower_state
from zippkit.checkpoint.manifest import FORMAT, read_checkpoint_manifest
from zippkit.checkpoint.references import TOWERS, Reference, as_json, copy_source, in_a_checkpoint
from zippkit.checkpoint.tower_folder import write_tower_state
from zippkit.errors import CheckpointError
from zippkit.model.weights import file_hash, identity, weight_files, write_tensors
from zippkit.plan.parts import CHECKPOINT_MANIFEST, SPEC
from zippkit.spec.standalone import spec_text
from zippkit.system.files import appearing, write_json, write_text


def write_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, root: Path | None = None, copy_towers: bool = False
) -> None:
    """Write a checkpoint, whole or not at all; an earlier one is exchanged with it in the end.

    Args:
        folder: where to write.
        checkpoint: what to write.
        root: a folder that is moved as a whole; sources inside are named relatively.
        copy_towers: copy the sources' files, byte for byte, so that the checkpoint stands alone.

    Raises:
        CheckpointError: something else is there, or a source is gone.
        WriteError: the disk is full or read-only.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        read_checkpoint_manifest(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with appearing(folder) as new:
        new.mkdir()
        towers = _write_towers(Destination(new, folder, root, copy_towers), checkpoint)
        for name, tensors in _other_tensors(checkpoint).items():
            if tensors:
                write_tensors(new / f"{name}.safetensors", tensors)
        write_text(new / SPEC, spec_text(checkpoint.spec))
        manifest = {"format": FORMAT, "files": _hashes(new, towers), "towers": towers, **checkpoint.extra}
        write_json(new / CHECKPOINT_MANIFEST, manifest)


def _hashes(folder: Path, towers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Hashes of all files; those of copied sources stand in the entries of their towers."""
    copied = {folder / TOWERS / name for name, entry in towers.items() if "source" in entry}
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.parent not in copied)
    return {file.relative_to(folder).as_posix(): file_hash(file) for file in files}


@dataclass(frozen=True)
class Destination:
    """The folder that is being written, and how to refer to towers' sources from it."""

    temporary: Path
    folder: Path
    root: Path | None
    copy: bool

    def refer(self, name: str, reference: Reference) -> dict[str, Any]:
        """The manifest's entry of a tower that has a source."""
        source = reference.source
        if self.copy or in_a_checkpoint(source):
            return self._copied(name, reference)
        if self.root is not None and source.is_relative_to(os.path.abspath(self.root)):  # noqa: PTH100
            return as_json(reference, Path(os.path.relpath(source, self.folder)).as_posix())
        return as_json(reference, str(source))

    def _copied(self, name: str, reference: Reference) -> dict[str, Any]:
        copy = self.temporary / TOWERS / name
        copy_source(reference.source, copy)
        files = {file.name: file_hash(file) for file in weight_files(copy)}
        if sorted(files.values()) != sorted(reference.files.values()):
            raise CheckpointError(f"{reference.source}: changed while tower {name!r} was copied from there")
        return as_json(replace(reference, files=files), f"{TOWERS}/{name}")


def _write_towers(destination: Destination, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Write what has no source, copy what is to be copied; the manifest's entry of each tower."""
    entries: dict[str, dict[str, Any]] = {}
    known: dict[object, str] = {}
    for name, spec in checkpoint.spec.towers.items():
        state = tower_state(checkpoint.tensors, name)
        same = tuple((key, identity(tensor)) for key, tensor in state.items() if tensor.numel())
        first = known.setdefault(same, name) if same else name
        if first != name:
            entries[name] = {"same_as": first}
        elif name in checkpoint.references:
            entries[name] = destination.refer(name, checkpoint.references[name])
        else:
            write_tower_state(
                destination.temporary / TOWERS / name, state, spec.kind, spec.settings, checkpoint.sources.get(name)
            )
            entries[name] = {"folder": f"{TOWERS}/{name}"}
    return entries


def _other_tensors(checkpoint: Checkpoint) -> dict[str, Mapping[str, Tensor]]:
    """Group the tensors that belong to no tower by file."""
    rest = {key: tensor for key, tensor in checkpoint.tensors.items() if not key.startswith(f"{TOWERS}.")}
    adapters = {key: tensor for key, tensor in rest.items() if key.startswith("adapters.")}
    links = {key: tensor for key, tensor in rest.items() if key not in adapters}
    return {"links": links, "adapters": adapters, "optimizer": checkpoint.optimizer}
