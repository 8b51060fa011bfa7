"""Checkpoints: a folder of safetensors, spec and manifest, complete or not there at all.

::

    spec.yaml                         with every config written out, and no path
    manifest.json                     hashes, and of each tower where it is
    links.safetensors                 links, input projections, and whatever else belongs to no single tower
    adapters.safetensors              if there are any
    towers/NAME/                      towers that were trained, or that have no source of their own
    optimizer.safetensors             while a run is under way

A frozen tower that still equals the weights it came from is not copied: the manifest names their place and hashes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zippkit.checkpoint.references import (
    TOWERS,
    Reference,
    as_json,
    check_references,
    copy_companions,
    copy_source,
    from_json,
    in_a_checkpoint,
)
from zippkit.errors import CheckpointError, SpecError, did_you_mean
from zippkit.loading import load_spec
from zippkit.model.tower import Tower
from zippkit.model.weights import (
    file_hash,
    filled_in_place,
    identity,
    load_into,
    read_tensors,
    state_hash,
    weight_files,
    write_tensors,
)
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.parts import CHECKPOINT_MANIFEST, SPEC, part_of
from zippkit.spec import registry
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import TOWER_FILE, TowerConfig
from zippkit.spec.standalone import difference, spec_text
from zippkit.system.files import appearing, inside, parse_json, write_json, write_text

FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    spec: CompositionSpec
    """With every config written out and no path to weights."""
    tensors: Mapping[str, Tensor]
    """The model's state; once it is read, without the towers that are ``references``."""
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Plain data of whoever wrote it: step, tokenizer fingerprints, hashes of frozen tensors."""
    references: Mapping[str, Reference] = field(default_factory=dict)
    """Towers by the place of their weights."""
    sources: Mapping[str, Path] = field(default_factory=dict)
    """Where every tower's weights came from; once it is read, where they are, inside the checkpoint or elsewhere."""


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
        towers = _write_towers(_Place(new, folder, root, copy_towers), checkpoint)
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
class _Place:
    """Where a checkpoint is being written."""

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


def _write_towers(place: _Place, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
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
            entries[name] = place.refer(name, checkpoint.references[name])
        else:
            write_tower_state(
                place.temporary / TOWERS / name, state, spec.kind, spec.settings, checkpoint.sources.get(name)
            )
            entries[name] = {"folder": f"{TOWERS}/{name}"}
    return entries


def tower_state(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """One tower's tensors under its own names."""
    prefix = f"{TOWERS}.{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _other_tensors(checkpoint: Checkpoint) -> dict[str, Mapping[str, Tensor]]:
    """What is not a tower's, by file."""
    rest = {key: tensor for key, tensor in checkpoint.tensors.items() if not key.startswith(f"{TOWERS}.")}
    adapters = {key: tensor for key, tensor in rest.items() if key.startswith("adapters.")}
    links = {key: tensor for key, tensor in rest.items() if key not in adapters}
    return {"links": links, "adapters": adapters, "optimizer": checkpoint.optimizer}


def read_checkpoint(folder: Path, places: Mapping[str, str | Path] | None = None) -> Checkpoint:
    """Read everything that a checkpoint itself holds.

    Args:
        folder: the checkpoint.
        places: where towers are that the checkpoint only names, if not where it says.

    Raises:
        CheckpointError: not a checkpoint, cut short, or changed since it was written.
    """
    manifest = read_checkpoint_manifest(folder)
    _check_files(manifest["files"], folder)
    try:
        spec = load_spec(folder / SPEC)
    except SpecError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    references, own, same = _read_entries(manifest["towers"], spec, folder)
    references = _replaced(references, places or {}, folder)
    states = {name: read_tensors(at, check=False) for name, at in own.items()}
    states |= {name: states[other] for name, other in same.items() if other in states}
    references |= {name: references[other] for name, other in same.items() if other in references}
    files = {name: folder / f"{name}.safetensors" for name in ("links", "adapters", "optimizer")}
    found = {name: read_tensors(file) if file.exists() else {} for name, file in files.items()}
    tensors = {f"{TOWERS}.{name}.{key}": tensor for name, state in states.items() for key, tensor in state.items()}
    sources = own | {name: reference.source for name, reference in references.items()}
    return Checkpoint(
        spec,
        tensors | found["links"] | found["adapters"],
        found["optimizer"],
        {key: value for key, value in manifest.items() if key not in ("format", "files", "towers")},
        references,
        sources | {name: sources[other] for name, other in same.items()},
    )


def _check_files(files: Mapping[str, str], folder: Path) -> None:
    for name, digest in files.items():
        try:
            file = inside(folder, name)
        except ValueError as error:
            raise CheckpointError(f"{folder / CHECKPOINT_MANIFEST}: files: {error}") from error
        if not file.is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if file_hash(file) != digest:
            raise CheckpointError(
                f"{file}: differs from its hash in {CHECKPOINT_MANIFEST}; cut short or changed since it was written"
            )


def _read_entries(
    entries: Mapping[str, Any], spec: CompositionSpec, folder: Path
) -> tuple[dict[str, Reference], dict[str, Path], dict[str, str]]:
    """The towers that are named, the folders of those that are inside, and those that are another one again.

    Raises:
        CheckpointError: entries and spec do not agree.
    """
    references: dict[str, Reference] = {}
    own: dict[str, Path] = {}
    same: dict[str, str] = {}
    for name in dict.fromkeys([*spec.towers, *entries]):
        entry = entries.get(name)
        try:
            if name not in spec.towers or not isinstance(entry, dict):
                raise ValueError("expected one entry for each tower of the spec")
            if "same_as" in entry:
                same[name] = str(entry["same_as"])
            elif "folder" in entry:
                own[name] = Path(os.path.abspath(inside(folder, str(entry["folder"]))))  # noqa: PTH100
            else:
                references[name] = from_json(entry, folder)
        except ValueError as error:
            raise CheckpointError(f"{folder / CHECKPOINT_MANIFEST}: towers.{name}: {error}") from error
    for name, other in same.items():
        if other not in own and other not in references:
            raise CheckpointError(
                f"{folder / CHECKPOINT_MANIFEST}: towers.{name}: the same as {other!r}, which is not there"
            )
    return references, own, same


def _replaced(references: dict[str, Reference], places: Mapping[str, str | Path], folder: Path) -> dict[str, Reference]:
    for name in places:
        if name not in references:
            near = did_you_mean(name, references)
            raise CheckpointError(f"{folder}: there is no tower {name!r} that is kept elsewhere{near}")
    given = {name: Path(os.path.abspath(path)) for name, path in places.items()}  # noqa: PTH100
    return {name: replace(r, source=given.get(name, r.source)) for name, r in references.items()}


def check_whole(folder: Path) -> None:
    """Compare a checkpoint's own files with their hashes; the towers that it names elsewhere are not looked at.

    Raises:
        CheckpointError: not a checkpoint, cut short, or changed since it was written.
    """
    _check_files(read_checkpoint_manifest(folder)["files"], folder)


def read_checkpoint_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: none there, or of another format.
    """
    try:
        manifest = parse_json((folder / CHECKPOINT_MANIFEST).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{folder}: not a checkpoint ({CHECKPOINT_MANIFEST} is missing)") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / CHECKPOINT_MANIFEST}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        seen = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise CheckpointError(f"{folder / CHECKPOINT_MANIFEST}: not a checkpoint's; format {seen!r}, expected {FORMAT}")
    hashes, towers = manifest.get("files"), manifest.get("towers")
    if not isinstance(hashes, dict) or SPEC not in hashes or not isinstance(towers, dict):
        raise CheckpointError(f"{folder / CHECKPOINT_MANIFEST}: tells no hash of {SPEC}, or nothing of towers")
    return manifest


def restore(model: ZippedModel, checkpoint: Checkpoint, spec: CompositionSpec, source: Path) -> None:
    """Load a checkpoint into the model of ``spec``.

    Raises:
        CheckpointError: the checkpoint is of another composition, or a tower that it names is missing or another one.
    """
    differs = difference(checkpoint.spec, spec)
    if differs:
        raise CheckpointError(f"{source}: a checkpoint of another composition: {differs}")
    fill(model, checkpoint, source)


def fill(model: ZippedModel, checkpoint: Checkpoint, source: Path, parts: Collection[str] | None = None) -> None:
    """Load a checkpoint, or only the parts of these names, such as ``towers.text``.

    Raises:
        CheckpointError: names or shapes that do not fit, or a tower that is missing or another one; nothing has been
            changed then.
    """

    def wanted(part: str) -> bool:
        return parts is None or part in parts

    references = {name: r for name, r in checkpoint.references.items() if wanted(f"{TOWERS}.{name}")}
    check_references(references, source)
    referred = {f"{TOWERS}.{name}" for name in references}
    kept = {key: t for key, t in model.state_dict().items() if part_of(key) in referred or not wanted(part_of(key))}
    load_into(model, kept | {key: t for key, t in checkpoint.tensors.items() if wanted(part_of(key))}, str(source))
    for name, reference in references.items():
        # A tower that holds the values already is not read a second time, which may take twice its memory.
        if state_hash(model.tower(name).state_dict()) == reference.tensors:
            continue
        with filled_in_place(model.tower(name), f"{source}: tower {name!r}"):
            model.tower(name).load_weights(reference.source)
        if state_hash(model.tower(name).state_dict()) != reference.tensors:
            raise CheckpointError(
                f"{source}: tower {name!r} is loaded from {reference.source} with other values than when it was saved; "
                "another version of its kind?"
            )


def write_tower(folder: Path, tower: Tower, kind: str, source: Path | None = None) -> None:
    """One tower by itself, as a folder that a spec's ``weights`` can name: ``model.safetensors``, ``tower.json``, and
    where transformers has such an architecture, ``config.json``.

    Args:
        folder: where to write.
        tower: what to write.
        kind: its kind.
        source: where its weights came from; tokenizer and the like are taken along from there.
    """
    write_tower_state(folder, tower.state_dict(), kind, tower.config, source)


def write_tower_state(
    folder: Path, state: Mapping[str, Tensor], kind: str, config: TowerConfig, source: Path | None = None
) -> None:
    """As `write_tower`, from the tower's tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", state)
    if source is not None:
        copy_companions(source, folder)
    write_hugging_face(folder, kind, config, (tensor.dtype for tensor in state.values()))
    # Last, because whoever finds it takes the folder for whole.
    write_tower_json(folder, kind, config)


def write_tower_json(folder: Path, kind: str, config: TowerConfig) -> None:
    """Say what kind of tower a folder holds, with which config, and by which hashes its weights are known."""
    about = {"kind": kind, "config": config.model_dump(mode="json", exclude={"path"})}
    hashes = {file.name: file_hash(file) for file in weight_files(folder)}
    write_json(folder / TOWER_FILE, {**about, "files": hashes})


def write_hugging_face(folder: Path, kind: str, config: TowerConfig, dtypes: Iterable[torch.dtype]) -> None:
    """Write the ``config.json`` with which transformers reads a tower's weights; none where it has no such model.

    Args:
        folder: where the weights are.
        kind: the tower's kind.
        config: the tower's config.
        dtypes: of the weights; transformers loads all of them in the widest.
    """
    cls: type[Tower] = registry.implementation(registry.TOWERS, kind)
    told = cls.hugging_face(config)
    floats = {dtype for dtype in dtypes if dtype.is_floating_point}
    if told is not None and floats:
        widest = reduce(torch.promote_types, floats)
        write_json(folder / "config.json", {**told, "dtype": str(widest).removeprefix("torch.")})
