"""C3: what the spec freezes does not move, parameters and buffers; by hashes, here and at every save of a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from zippkit.checkpoint.frozen_hashes import check_frozen
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.evaluation.certificates.probe import batches, learn
from zippkit.evaluation.certificates.report import RefutedError
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.part_kinds import frozen_parts

STEPS = 2


@torch.enable_grad()
def frozen_tensors_rest(zipped: Composition) -> str:
    """Check certificate C3: what the spec freezes equals its first source and cannot be trained.

    Two steps of Adam over every direction, on a copy, must leave every such tensor unchanged.

    Raises:
        RefutedError: names what moved or could be trained.
    """
    spec, model = zipped.spec, copy.deepcopy(zipped.model).train()
    before = zipped.origins.completed(spec, model).tensors
    if not before:
        return _nothing(spec)
    _check(before, spec, model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3) if trained else None
    for step in range(STEPS):
        for batch in batches(zipped, seed=step):
            learn(zipped, model, batch)
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
    _check(before, spec, model)
    return f"{len(before)} frozen tensors, {STEPS} steps over {len(trained)} trained ones"


def _nothing(spec: CompositionSpec) -> str:
    freezing = [*(name for name, tower in spec.towers.items() if tower.freezes), *frozen_parts(spec)]
    if freezing:
        raise RefutedError(f"the spec freezes {', '.join(freezing)}, but nothing is there that is frozen")
    return "the spec freezes nothing"


def _check(before: Mapping[str, str], spec: CompositionSpec, model: ZippedModel) -> None:
    try:
        check_frozen(before, spec, model)
    except ZippkitError as error:
        raise RefutedError(str(error)) from error
