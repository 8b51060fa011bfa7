"""Load a checkpoint into a model, whole or in part."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from zippkit.checkpoint.checkpoint import Checkpoint
from zippkit.checkpoint.references import TOWERS, check_references
from zippkit.errors import CheckpointError
from zippkit.model.pieces import is_split
from zippkit.model.weights import filled_in_place, load_into, state_hash
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.parts import part_of
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.standalone import difference


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
        # Ranks come to share a frozen tower only once it holds the values, and each proves that its rows rest; one that
        # has none yet is filled then, from files that were just checked.
        if any(is_split(each) or each.is_meta for each in model.tower(name).parameters()):
            continue
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
