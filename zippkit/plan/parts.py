"""Which parts of a checkpoint another composition can take, by name and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zippkit.errors import CheckpointError
from zippkit.plan.graph import build_graph
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.part_kinds import part_kinds

CHECKPOINT_MANIFEST = "manifest.json"
SPEC = "spec.yaml"
Parts = dict[str, dict[str, Any]]
"""The settings that decide each part's tensors.

A part's name is the first two parts of its tensors' names: ``links.speech_to_text``."""


@dataclass(frozen=True)
class Transfer:
    """A checkpoint's parts by what another composition does with them; each is sorted."""

    taken: tuple[str, ...]
    new: tuple[str, ...]
    """Only in the other composition: they start fresh, links as the identity."""
    left_out: tuple[str, ...]
    """Only in the checkpoint."""

    def __str__(self) -> str:
        told = (("taken", self.taken), ("new", self.new), ("left out", self.left_out))
        return "\n".join(f"{what}: {', '.join(parts) or 'nothing'}" for what, parts in told)


def part_of(key: str) -> str:
    """The part to which a tensor of the model belongs."""
    return ".".join(key.split(".", 2)[:2])


def parts(spec: CompositionSpec) -> Parts:
    """The parts of a sound spec's model, towers among them."""
    found: Parts = {}
    for name, tower in spec.towers.items():
        config = tower.settings.model_dump(mode="json", exclude={"path", "dropout"})
        found[f"towers.{name}"] = {"kind": tower.kind, "dtype": tower.dtype, "config": config}
    for kind in part_kinds(spec):
        found |= {f"{kind.group}.{name}": kind.made_of(spec, name) for name in kind.names(spec)}
    for site in build_graph(spec).sites:
        found[f"links.{site.link}"].setdefault("sites", []).append((site.source_depth, site.target_depth))
    return found


def compare(old: CompositionSpec, new: CompositionSpec) -> tuple[Transfer, list[str]]:
    """Compare the parts of two compositions; returns what ``new`` takes, and a message for each misfit."""
    there, here = parts(old), parts(new)
    common = sorted(there.keys() & here.keys())
    transfer = Transfer(tuple(common), tuple(sorted(here.keys() - there)), tuple(sorted(there.keys() - here)))
    misfits = [f"{name}: {said}" for name in common if (said := _difference(there[name], here[name]))]
    for name, tower in new.towers.items():
        if tower.share_with in old.towers and name in old.towers and old.towers[name].share_with != tower.share_with:
            misfits.append(f"towers.{name}: the weights are {tower.share_with!r}'s here, but not there")
    return transfer, misfits


def _difference(there: Mapping[str, Any], here: Mapping[str, Any], place: str = "") -> str:
    """The first value in which two descriptions differ; empty if there is none."""
    for key in dict.fromkeys([*there, *here]):
        old, new = there.get(key), here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if said := _difference(old, new, f"{place}{key}."):
                return said
        elif old != new:
            return f"{place}{key} is {old!r} there and {new!r} here; make them the same, or give this one another name"
    return ""


def checkpoint_folder(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the finished model of a run.

    Raises:
        CheckpointError: a run that is not finished.
    """
    if (path / CHECKPOINT_MANIFEST).exists() or not (path / "recipe.yaml").exists():
        return path
    if not (path / "model").exists():
        raise CheckpointError(f"{path}: this run is not finished; start its recipe again to go on")
    return path / "model"
