"""Proof that frozen means frozen: hashes of every tensor that the spec freezes, as its first source held it (C3)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from zippkit.errors import ZippkitError
from zippkit.model.weights import fingerprint, hashes_here
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.parts import part_of
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.part_kinds import frozen_parts


def frozen_tensors(spec: CompositionSpec, model: ZippedModel) -> dict[str, Tensor]:
    """Parameters that the spec freezes, and buffers of what it freezes as a whole, by their names in the model.

    What ``requires_grad`` says does not matter here: whoever sets it by hand changes no promise of the spec.
    """
    found: dict[str, Tensor] = {}
    # Children and not items: a tower that has two names counts once.
    for name, tower in model.towers.named_children():
        parameters = dict(tower.named_parameters())
        frozen = spec.towers[name].frozen(parameters)
        tensors: dict[str, Tensor] = {key: each for key, each in parameters.items() if frozen[key]}
        if spec.towers[name].frozen_whole:
            tensors |= dict(tower.named_buffers())
        found |= {f"towers.{name}.{key}": each.detach() for key, each in tensors.items()}
    parts = set(frozen_parts(spec))
    others = (*model.named_parameters(), *model.named_buffers()) if parts else ()
    return found | {key: each.detach() for key, each in others if part_of(key) in parts}


def frozen_hashes(spec: CompositionSpec, model: ZippedModel) -> dict[str, str]:
    """SHA-256 of each tensor that the spec freezes, and that has a value by now."""
    return fingerprint((name, each) for name, each in frozen_tensors(spec, model).items() if not each.is_meta)


def frozen_here(known: Mapping[str, str], spec: CompositionSpec, model: ZippedModel) -> dict[str, str]:
    """What `check_frozen` compares with once ranks share a model, which holds what is known, to the bit, as they do."""
    return hashes_here(known, frozen_tensors(spec, model))


@dataclass(frozen=True)
class Origins:
    """Hashes of frozen tensors and towers in the first source that they came from, through any chain of runs since."""

    tensors: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each tensor that the spec freezes, by its name in the model (`zippkit.model.weights.fingerprint`)."""
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """SHA-256 of each file of weights, by name, of the towers that the spec freezes as a whole."""

    @classmethod
    def from_manifest(cls, extra: Mapping[str, Any], parts: Collection[str] | None = None) -> Self:
        """Read a checkpoint's manifest, for all parts or only those of these names, such as ``towers.text``."""
        tensors, files = extra.get("frozen") or {}, extra.get("origins") or {}
        return cls(
            {key: value for key, value in tensors.items() if parts is None or part_of(key) in parts},
            {name: value for name, value in files.items() if parts is None or f"towers.{name}" in parts},
        )

    def as_manifest(self) -> dict[str, Any]:
        """The entries of a checkpoint's manifest."""
        return {"frozen": dict(self.tensors), "origins": {name: dict(files) for name, files in self.files.items()}}

    def completed(
        self,
        spec: CompositionSpec,
        model: ZippedModel,
        parts: Collection[str] | None = None,
        files: Mapping[str, Mapping[str, str]] | None = None,
    ) -> Origins:
        """For what the spec freezes: what is known, and of anything else what the model holds now.

        Args:
            spec: says what is frozen.
            model: is looked at where nothing is known.
            parts: of which parts it is, such as ``towers.text``; all of them if left out.
            files: of each tower's source, where the first one's are not known.
        """
        here = {
            name: tensor
            for name, tensor in frozen_tensors(spec, model).items()
            if (parts is None or part_of(name) in parts) and (name in self.tensors or not tensor.is_meta)
        }
        new = fingerprint((name, tensor) for name, tensor in here.items() if name not in self.tensors)
        whole = {name for name, tower in spec.towers.items() if tower.frozen_whole}
        return Origins(
            {name: self.tensors.get(name) or new[name] for name in here},
            {name: value for name, value in {**(files or {}), **self.files}.items() if name in whole},
        )


def moved_tensors(known: Mapping[str, str], spec: CompositionSpec, model: ZippedModel, tower: str) -> list[str]:
    """Names of a tower's frozen tensors that differ from what is known of their first source."""
    prefix = f"towers.{model.owner(tower)}."
    here = ((name, t) for name, t in frozen_tensors(spec, model).items() if name in known and name.startswith(prefix))
    return [name for name, digest in fingerprint(here).items() if digest != known[name]]


def check_frozen(known: Mapping[str, str], spec: CompositionSpec, model: ZippedModel) -> None:
    """Compare what the spec freezes with hashes that were taken of its first source.

    Raises:
        ZippkitError: names every tensor that moved, that could be trained although the spec freezes it, that is frozen
            no more, or of which no hash is known.
    """
    after = frozen_hashes(spec, model)
    # Whose values are still to be read is proved as they are.
    unread = {name for name, each in frozen_tensors(spec, model).items() if each.is_meta}
    wrong = [f"{name} has moved" for name in known if name in after and after[name] != known[name]]
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    wrong += [f"{name} is trainable although the spec freezes it" for name in trainable if name in after]
    wrong += [f"{name} is not frozen any more" for name in known if name not in after and name not in unread]
    wrong += [f"{name} was not frozen at first" for name in after if name not in known]
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ZippkitError(f"frozen weights must not change: {shown}")
