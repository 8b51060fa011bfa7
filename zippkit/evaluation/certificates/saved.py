"""C8: a frozen tower leaves a composition as it came; shown by saving it and hashing the files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from zippkit.checkpoint.frozen_hashes import moved_tensors
from zippkit.checkpoint.reading import read_checkpoint
from zippkit.checkpoint.references import frozen_towers, refer, short_hashes
from zippkit.composition import Composition
from zippkit.evaluation.certificates.report import RefutedError, some
from zippkit.model.weights import file_hash, read_tensors, state_hash, weight_files


@torch.no_grad()
def frozen_towers_leave_as_they_came(zipped: Composition) -> str:
    """Certificate C8, in a temporary folder.

    Files of a tower that has a source must be the source's, byte for byte. One that has none must be saved bit for
    bit, and in the same bytes a second time.

    Raises:
        RefutedError: names the tower.
    """
    frozen = frozen_towers(zipped.spec)
    if not frozen:
        return "the spec freezes no tower as a whole"
    for name in frozen:
        if name in zipped.sources:
            _demand_source(zipped, name, zipped.sources[name])
    with tempfile.TemporaryDirectory() as folder:
        saves = [Path(folder) / save for save in ("first", "second")]
        for save in saves:
            zipped.save(save, copy_towers=True)
        places = [read_checkpoint(save).sources for save in saves]
        for name in frozen:
            _demand_same(zipped, name, *(place[name] for place in places))
    named = {
        "byte for byte as in the source": [name for name in frozen if name in zipped.sources],
        "without a source, bit for bit, and in the same bytes twice": [n for n in frozen if n not in zipped.sources],
    }
    return "; ".join(f"{', '.join(names)} {how}" for how, names in named.items() if names)


def _demand_same(zipped: Composition, name: str, first: Path, second: Path) -> None:
    """Two saves must be the first source's bytes, or each other's and what is in memory."""
    source = zipped.sources.get(name)
    if _hashes(first) != _hashes(source or second):
        raise RefutedError(f"{name}: what was saved differs in bytes from {source or 'a second save'}")
    origin = zipped.origins.files.get(name)
    if origin is not None and _hashes(first) != sorted(origin.values()):
        raise RefutedError(f"{name}: what was saved differs in bytes from its first source, {short_hashes(origin)}")
    if source is None:
        state, saved = zipped.model.tower(name).state_dict(), read_tensors(first)
        if state_hash(state) != state_hash(saved):
            raise RefutedError(f"{name}: what was saved differs from what is in memory")


def _hashes(place: Path) -> list[str]:
    return sorted(file_hash(file) for file in weight_files(place))


def _demand_source(zipped: Composition, name: str, source: Path) -> None:
    """Check that tensors in memory equal those of their source, and of the first source."""
    reference = refer(zipped.spec.towers[name], source)
    if reference is None:
        raise RefutedError(f"{name}: its source {source} is gone or cannot be read")
    if state_hash(zipped.model.tower(name).state_dict()) != reference.tensors:
        raise RefutedError(f"{name} is frozen, but differs from its source {source}")
    if moved := moved_tensors(zipped.origins.tensors, zipped.spec, zipped.model, name):
        raise RefutedError(f"{name} is frozen, but differs from its first source in {some(moved)}")
