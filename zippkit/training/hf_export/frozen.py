"""Frozen towers that an exported model names, instead of holding their weights."""

from __future__ import annotations

from typing import Any

from zippkit.checkpoint.references import Reference, find_references, in_a_run
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.training.hf_export.description import exported_towers

_READ_BY = {"hf_causal_lm": "causal_lm", "hf_encoder": "encoder"}


def frozen_references(zipped: Composition) -> dict[str, dict[str, Any]]:
    """By tower, where its weights stand and by which hashes they are known.

    Raises:
        ZippkitError: no frozen tower is what its source holds.
    """
    known = find_references(zipped.spec, zipped.model, zipped.sources)
    kinds = {name: exported.kind for name, exported in exported_towers(zipped).items()}
    found = {name: _reference(zipped, name, each, kinds[name]) for name, each in known.items() if name in kinds}
    if not found:
        raise ZippkitError("--reference-frozen: no frozen tower has a source whose weights it still holds")
    return found


def told(references: dict[str, dict[str, Any]], zipped: Composition) -> list[str]:
    """Sentences about where the weights stand."""
    lines = [f"tower {name}: named, not copied: {each['path']}" for name, each in references.items()]
    return lines + [
        f"tower {name}: its weights stand inside a run, {zipped.sources[name]}; they must stay there"
        for name in references
        if in_a_run(zipped.sources[name])
    ]


def _reference(zipped: Composition, name: str, reference: Reference, kind: str) -> dict[str, Any]:
    source = reference.source
    hub_id = getattr(zipped.spec.towers[name].settings, "path", None)
    # The hub keeps what it has fetched in folders that are called after the commit.
    fetched = hub_id is not None and source.parent.name == "snapshots"
    return {
        "path": hub_id if fetched else str(source),
        "revision": source.name if fetched else None,
        "files": dict(reference.files),
        "read_by": _READ_BY.get(kind, "safetensors"),
    }
