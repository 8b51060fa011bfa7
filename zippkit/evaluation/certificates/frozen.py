"""C3: what is frozen does not move, parameters and buffers; shown by hashes, here and at every save of a run."""

from __future__ import annotations

import copy

import torch

from zippkit.checkpoint.frozen_hashes import check_frozen, frozen_hashes
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.evaluation.certificates.probe import batches, learn
from zippkit.evaluation.certificates.report import RefutedError

STEPS = 2


@torch.enable_grad()
def frozen_tensors_rest(zipped: Composition) -> str:
    """Certificate C3: two steps of Adam over every direction, on a copy.

    Raises:
        RefutedError: names what moved.
    """
    model = copy.deepcopy(zipped.model).train()
    before = frozen_hashes(model)
    if not before:
        return "nothing is frozen"
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3) if trained else None
    for step in range(STEPS):
        for batch in batches(zipped, seed=step):
            learn(zipped, model, batch)
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
    try:
        check_frozen(before, model)
    except ZippkitError as error:
        raise RefutedError(str(error)) from error
    return f"{len(before)} frozen tensors, {STEPS} steps over {len(trained)} trained ones"
