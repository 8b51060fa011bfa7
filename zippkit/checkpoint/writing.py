"""Write a checkpoint, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zippkit.checkpoint.checkpoint import Checkpoint, tower_state
from zippkit.checkpoint.manifest import FORMAT, read_checkpoint_manifest
from zippkit.checkpoint.references import TOWERS, Reference, as_json, copy_source, in_a_checkpoint
from zippkit.checkpoint.shards import Files, write_files
from zippkit.checkpoint.together import ALONE, Together
from zippkit.checkpoint.tower_folder import describe_tower
from zippkit.errors import CheckpointError
from zippkit.model.pieces import Held
from zippkit.model.weights import file_hash, identity, weight_files
from zippkit.plan.parts import CHECKPOINT_MANIFEST, SPEC
from zippkit.spec.standalone import spec_text
from zippkit.system.files import write_json, write_text


def write_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    root: Path | None = None,
    copy_towers: bool = False,
    together: Together = ALONE,
) -> None:
    """Write a checkpoint, whole or not at all; an earlier one is exchanged with it in the end.

    Several ranks call it together, each with its pieces of the tensors. They write the same files as one process.

    Args:
        folder: where to write.
        checkpoint: what to write.
        root: a folder that is moved as a whole; sources inside are named relatively.
        copy_towers: copy the sources' files, byte for byte, so that the checkpoint stands alone.
        together: the ranks that write.

    Raises:
        CheckpointError: something else is there, or a source is gone.
        WriteError: the disk is full or read-only.
        ZippkitError: it failed on another rank.
    """
    together.first(lambda: _make_room(folder))
    with together.appearing(folder) as new:
        towers = together.first(lambda: _entries(Destination(new, folder, root, copy_towers), checkpoint))
        files = _tensors_by_file(checkpoint, [name for name, entry in towers.items() if "folder" in entry])
        write_files(new, files, together)
        together.first(lambda: _describe_towers(new, checkpoint, towers))
        together.first(lambda: write_text(new / SPEC, spec_text(checkpoint.spec)))
        hashes = _hashes(new, towers, together)
        manifest = {"format": FORMAT, "files": hashes, "towers": towers, **checkpoint.extra}
        together.first(lambda: write_json(new / CHECKPOINT_MANIFEST, manifest))


def _make_room(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        read_checkpoint_manifest(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)


def _hashes(folder: Path, towers: Mapping[str, Mapping[str, Any]], together: Together) -> dict[str, str]:
    """Hashes of all files, which ranks read in turns; those of copied sources stand in the entries of their towers."""
    copied = {folder / TOWERS / name for name, entry in towers.items() if "source" in entry}
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.parent not in copied]
    mine = files[together.rank :: together.size]
    parts = together.each(lambda: {file.relative_to(folder).as_posix(): file_hash(file) for file in mine})
    found = {name: digest for part in parts for name, digest in part.items()}
    return {name: found[name] for name in (file.relative_to(folder).as_posix() for file in files)}


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


def _entries(destination: Destination, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """The manifest's entry of each tower: named, the same as another, or to be written; copies what is to be copied."""
    destination.temporary.mkdir()
    entries: dict[str, dict[str, Any]] = {}
    known: dict[object, str] = {}
    for name in checkpoint.spec.towers:
        state = tower_state(checkpoint.tensors, name)
        same = tuple((key, identity(tensor)) for key, tensor in state.items() if tensor.numel())
        first = known.setdefault(same, name) if same else name
        if first != name:
            entries[name] = {"same_as": first}
        elif name in checkpoint.references:
            entries[name] = destination.refer(name, checkpoint.references[name])
        else:
            (destination.temporary / TOWERS / name).mkdir(parents=True)
            entries[name] = {"folder": f"{TOWERS}/{name}"}
    return entries


def _tensors_by_file(checkpoint: Checkpoint, towers: Sequence[str]) -> Files[Held]:
    """All tensors by the file that holds them; of these towers, and of what belongs to no tower."""
    files: dict[str, Mapping[str, Held]] = {
        f"{TOWERS}/{name}/model.safetensors": tower_state(checkpoint.tensors, name) for name in towers
    }
    rest = {key: tensor for key, tensor in checkpoint.tensors.items() if not key.startswith(f"{TOWERS}.")}
    adapters = {key: tensor for key, tensor in rest.items() if key.startswith("adapters.")}
    links = {key: tensor for key, tensor in rest.items() if key not in adapters}
    others = {"links": links, "adapters": adapters, "optimizer": checkpoint.optimizer}
    return files | {f"{name}.safetensors": tensors for name, tensors in others.items() if tensors}


def _describe_towers(folder: Path, checkpoint: Checkpoint, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Say beside the towers that were written what they are."""
    for name in (name for name, entry in entries.items() if "folder" in entry):
        spec, dtypes = checkpoint.spec.towers[name], [t.dtype for t in tower_state(checkpoint.tensors, name).values()]
        describe_tower(folder / TOWERS / name, dtypes, spec.kind, spec.settings, checkpoint.sources.get(name))
