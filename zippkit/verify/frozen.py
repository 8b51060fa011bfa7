"""C3: what is frozen does not move, parameters and buffers; shown by hashes, here and at every save of a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.model import ZippedModel
from zippkit.verify.probe import batches, learn
from zippkit.verify.report import RefutedError, some
from zippkit.weights import fingerprint

STEPS = 2


def frozen_hashes(model: ZippedModel) -> dict[str, str]:
    """SHA-256 of every frozen parameter and buffer, by name."""
    return fingerprint(model.frozen_tensors().items())


def check_frozen(before: Mapping[str, str], model: ZippedModel) -> None:
    """Compare with what `frozen_hashes` gave at the start.

    Raises:
        ZippkitError: names every tensor that moved, and those that are not frozen any more or were not then.
    """
    after = frozen_hashes(model)
    wrong = [f"{name} has moved" for name in before if name in after and after[name] != before[name]]
    wrong += [f"{name} is not frozen any more" for name in before if name not in after]
    wrong += [f"{name} was not frozen at first" for name in after if name not in before]
    if wrong:
        raise ZippkitError(f"frozen weights must not change: {some(wrong)}")


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
