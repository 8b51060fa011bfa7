"""One tower of a run by itself, as a folder that another spec's ``weights``, and transformers, can read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zippkit.checkpoint.frozen_hashes import moved_tensors
from zippkit.checkpoint.references import copy_source, find_references
from zippkit.checkpoint.tower_folder import write_hugging_face, write_tower_json, write_tower_state
from zippkit.composition import Composition, load
from zippkit.data.text import FileTokenizer
from zippkit.errors import CheckpointError, ZippkitError, did_you_mean
from zippkit.model.lora import merged_state
from zippkit.model.weights import file_hash, float_dtypes, weight_files
from zippkit.spec import registry
from zippkit.spec.kinds import TowerConfig
from zippkit.spec.tower_spec import TowerSpec
from zippkit.system.files import appearing
from zippkit.training.hf_export.tokenizers import write_text_tokenizer
from zippkit.training.run_folder import RunFolder


def export_tower(run: Path, name: str, out: Path, *, merge: bool = False) -> list[str]:
    """Write one tower of a run or a checkpoint.

    The weights of a frozen tower that has a source are a copy of it, byte for byte; those of any other one are
    written as they are, in their own dtype. Beside them stand ``config.json``, where transformers has such an
    architecture, the tokenizer's and the generation's files that the source had (or the run's own ``tokenizer.json``),
    and ``tower.json`` where it says more than the ``config.json`` does.

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
    if merge and (spec.share_with or name) not in zipped.model.groups["adapters"]:
        raise ZippkitError(f"{run}: tower {name!r} has no adapters that could be merged; leave out --merge")
    out.parent.mkdir(parents=True, exist_ok=True)
    with appearing(out) as new:
        lines = [_write(zipped, name, new, merge)]
        _keep_tokenizer(run, name, new)
    return [*lines, *_left_out(zipped, name, out, merge)]


def _write(zipped: Composition, name: str, folder: Path, merge: bool) -> str:
    spec, tower = zipped.spec.towers[name], zipped.model.tower(name)
    _demand_origin(zipped, name)
    source = None if merge else find_references(zipped.spec, zipped.model, zipped.sources).get(name)
    if source is None:
        state = merged_state(zipped.model, spec.share_with or name) if merge else tower.state_dict()
        write_tower_state(folder, state, spec.kind, spec.settings, zipped.sources.get(name))
        return f"tower {name}{', its adapters merged' if merge else ''}: {_hashes(folder)}"
    copy_source(source.source, folder)
    if sorted(map(file_hash, weight_files(folder))) != sorted(zipped.origins.files.get(name, source.files).values()):
        raise CheckpointError(f"{source.source}: changed while it was copied")
    _describe(spec, folder)
    return f"tower {name}, frozen, byte for byte as in {source.source}: {_hashes(folder)}"


def _demand_origin(zipped: Composition, name: str) -> None:
    """Demand that the frozen part of a tower is what its first source held.

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


def _describe(spec: TowerSpec, folder: Path) -> None:
    """Say what copied weights are, where the files that were copied with them do not, or say otherwise."""
    cls: type[TowerConfig] = registry.config_class(registry.TOWERS, spec.kind)
    try:
        told = cls.told_by(folder, spec.kind)
    except ValueError:
        told = None
    if _plain(told) != _plain(spec.settings):
        write_tower_json(folder, spec.kind, spec.settings)
    if not (folder / "config.json").exists() or _plain(told, "frame") != _plain(spec.settings, "frame"):
        write_hugging_face(folder, spec.kind, spec.settings, float_dtypes(folder))


def _plain(config: TowerConfig | None, *but: str) -> dict[str, Any] | None:
    return None if config is None else config.model_dump(exclude={"path", *but})


def _hashes(folder: Path) -> str:
    return ", ".join(f"{file.name} SHA-256 {file_hash(file)}" for file in weight_files(folder))


def _keep_tokenizer(run: Path, name: str, folder: Path) -> None:
    """The run's own tokenizer of the tower's modality, as transformers reads it, where the source had none."""
    if any((folder / file).exists() for file in ("tokenizer.json", "tokenizer.model")):
        return
    tokenizer = RunFolder(run).tokenizer(name)
    if not isinstance(tokenizer, FileTokenizer):
        return
    write_text_tokenizer(tokenizer, folder)


def _left_out(zipped: Composition, name: str, out: Path, merge: bool) -> Iterator[str]:
    """Sentences about what the folder leaves out."""
    spec = zipped.spec.towers[name]
    if (spec.share_with or name) in zipped.model.groups["adapters"] and not merge:
        yield "its adapters are left out; --merge adds them into the weights"
    if spec.extend_vocabulary:
        yield f"the ids that were added to its vocabulary ({', '.join(spec.extend_vocabulary)}) are left out"
    if not (out / "config.json").exists():
        yield f"transformers has no model that computes what kind {spec.kind!r} does; only zippkit reads this folder"
