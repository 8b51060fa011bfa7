"""Read everything that a checkpoint itself holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zippkit.checkpoint.checkpoint import Checkpoint
from zippkit.checkpoint.manifest import check_files, read_checkpoint_manifest
from zippkit.checkpoint.references import TOWERS, Reference, from_json
from zippkit.checkpoint.together import ALONE, Together
from zippkit.errors import CheckpointError, SpecError, did_you_mean
from zippkit.loading import load_spec
from zippkit.model.weights import read_tensors
from zippkit.plan.parts import CHECKPOINT_MANIFEST, SPEC
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.system.files import inside


def read_checkpoint(
    folder: Path, locations: Mapping[str, str | Path] | None = None, together: Together = ALONE
) -> Checkpoint:
    """Read everything that a checkpoint itself holds; tensors are mapped from the files, and read where they are used.

    Args:
        folder: the checkpoint.
        locations: of towers that the checkpoint only names, if not where it says.
        together: the ranks that read it, between which its hashes are divided.

    Raises:
        CheckpointError: not a checkpoint, cut short, or changed since it was written.
    """
    manifest = read_checkpoint_manifest(folder)
    mine = sorted(manifest["files"])[together.rank :: together.size]
    together.each(lambda: check_files({name: manifest["files"][name] for name in mine}, folder))
    try:
        spec = load_spec(folder / SPEC)
    except SpecError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    references, own, same = _read_entries(manifest["towers"], spec, folder)
    references = _replaced(references, locations or {}, folder)
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


def _replaced(
    references: dict[str, Reference], locations: Mapping[str, str | Path], folder: Path
) -> dict[str, Reference]:
    for name in locations:
        if name not in references:
            near = did_you_mean(name, references)
            raise CheckpointError(f"{folder}: there is no tower {name!r} that is kept elsewhere{near}")
    given = {name: Path(os.path.abspath(path)) for name, path in locations.items()}  # noqa: PTH100
    return {name: replace(r, source=given.get(name, r.source)) for name, r in references.items()}
