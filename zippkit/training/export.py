"""One tower of a run by itself, as a folder that another spec's ``weights`` can name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from zippkit.checkpoint.checkpoint import write_tower_state
from zippkit.checkpoint.frozen_hashes import moved_tensors
from zippkit.checkpoint.references import copy_source, find_references
from zippkit.composition import Composition, load
from zippkit.errors import CheckpointError, ZippkitError, did_you_mean
from zippkit.model.lora import merged_state
from zippkit.model.weights import file_hash, weight_files
from zippkit.spec import registry
from zippkit.spec.composition_spec import TowerSpec
from zippkit.spec.kinds import TowerConfig
from zippkit.system.files import appearing


def export_tower(run: Path, name: str, out: Path, *, merge: bool = False) -> list[str]:
    """Write one tower of a run or a checkpoint.

    A frozen tower that has a source is a copy of it, byte for byte; any other one is ``model.safetensors`` and
    ``tower.json``.

    Args:
        run: the run or checkpoint.
        name: the tower's name.
        out: a folder that does not exist, or is empty.
        merge: add the tower's adapters (LoRA) into its weights.

    Returns:
        What there is to tell, a line each.

    Raises:
        ZippkitError: no such tower, nothing to merge, or something is in the way.
        CheckpointError: no finished run or sound checkpoint is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ZippkitError(f"{out}: exists; choose another --out")
    zipped = load(run)
    spec = zipped.spec.towers.get(name)
    if spec is None:
        raise ZippkitError(f"{run}: no tower is called {name!r}{did_you_mean(name, zipped.spec.towers)}")
    has_adapters = (spec.share_with or name) in zipped.model.adapters
    if merge and not has_adapters:
        raise ZippkitError(f"{run}: tower {name!r} has no adapters that could be merged; leave out --merge")
    out.parent.mkdir(parents=True, exist_ok=True)
    with appearing(out) as new:
        lines = [_write(zipped, name, new, merge)]
    if has_adapters and not merge:
        lines.append("its adapters are left out; --merge adds them into the weights")
    return [*lines, *_config_hint(spec, out)]


def _write(zipped: Composition, name: str, folder: Path, merge: bool) -> str:
    spec, tower = zipped.spec.towers[name], zipped.model.tower(name)
    _demand_origin(zipped, name)
    source = None if merge else find_references(zipped.spec, zipped.model, zipped.sources).get(name)
    if source is None:
        state: Mapping[str, Tensor] = tower.state_dict()
        if merge:
            state = merged_state(zipped.model, spec.share_with or name)
        write_tower_state(folder, state, spec.kind, spec.settings)
        return f"tower {name}{', its adapters merged' if merge else ''}: {_hashes(folder)}"
    copy_source(source.source, folder)
    if sorted(map(file_hash, weight_files(folder))) != sorted(zipped.origins.files.get(name, source.files).values()):
        raise CheckpointError(f"{source.source}: changed while it was copied")
    return f"tower {name}, frozen, byte for byte as in {source.source}: {_hashes(folder)}"


def _demand_origin(zipped: Composition, name: str) -> None:
    """What the spec freezes of a tower must be what its first source held.

    Raises:
        CheckpointError: names what differs.
    """
    moved = moved_tensors(zipped.origins.tensors, zipped.spec, zipped.model, name)
    if moved:
        more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
        raise CheckpointError(
            f"tower {name!r}: the spec freezes it, but it differs from its first source in {', '.join(moved[:5])}{more}"
            "; it is not exported as what it is not (grown into a spec that says `freeze: false`, it is)"
        )


def _hashes(folder: Path) -> str:
    return ", ".join(f"{file.name} SHA-256 {file_hash(file)}" for file in weight_files(folder))


def _config_hint(spec: TowerSpec, out: Path) -> list[str]:
    """What to write into a spec where the folder does not tell the config that the tower had."""
    cls: type[TowerConfig] = registry.config_class(registry.TOWERS, spec.kind)
    try:
        told = cls.from_folder(out)
    except ValueError:
        told = None
    unlike = told is None or told.model_dump(exclude={"path", "frame"}) != spec.settings.model_dump(
        exclude={"path", "frame"}
    )
    return [f"the folder does not tell its config; write into the spec: config: {spec.config}"] if unlike else []
