"""C7: a gradient reaches every parameter that is trained."""

from __future__ import annotations

import copy

import torch
from torch import nn

from zippkit.composition import Composition
from zippkit.evaluation.certificates.probe import DRAWS, batches, learn, randomize_zero_inits
from zippkit.evaluation.certificates.report import RefutedError, some


@torch.enable_grad()
def every_parameter_is_reached(zipped: Composition) -> str:
    """Certificate C7: one dry step with a loss on every tower, on a copy in which no parameter is zero.

    Raises:
        RefutedError: names the parameters whose gradient is None, all zeros, or not finite.
    """
    model = copy.deepcopy(zipped.model).eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missed = list(trained)
    for seed in range(DRAWS):
        if not missed:
            break
        randomize_zero_inits(model, seed)
        for batch in batches(zipped, seed):
            learn(zipped, model, batch)
        missed = [name for name in missed if not _is_reached(trained[name])]
    if missed:
        raise RefutedError(f"no gradient (or zero, or not finite) reaches {some(missed)}")
    return f"{len(trained)} trained parameters" if trained else "nothing is trained"


def _is_reached(parameter: nn.Parameter) -> bool:
    grad = parameter.grad
    return grad is not None and bool(grad.any()) and bool(grad.isfinite().all())
