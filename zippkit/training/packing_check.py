"""Whether every tower and link keeps examples apart that share a row, tried on a run's own data before it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zippkit.batch.batch import Batch
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.training.task_data import TaskData

N_EXAMPLES = 3
TOLERANCE = 1e-3
"""Of the largest logit. Other kernels differ by 1e-6; whoever sees another example, by 1e-1."""


@torch.no_grad()
def check_packing(zipped: Composition, tasks: Sequence[TaskData], where: str) -> None:
    """Run the first examples of each task in rows of their own, and in one row.

    Args:
        zipped: the composition.
        tasks: what is trained.
        where: the key that asks for packing, for the message.

    Raises:
        ZippkitError: names the towers whose logits depend on who else is in the row.
    """
    model, was_training = zipped.model, zipped.model.training
    device = next(model.parameters()).device
    wrong: dict[str, float] = {}
    model.eval()
    try:
        for task in tasks:
            examples = [task.segments(i) for i in range(min(N_EXAMPLES, len(task)))]
            multimodal = task.task.multimodal
            batches = [zipped.collate(examples, multimodal=multimodal, pack=pack) for pack in (None, 2**40)]
            alone, together = (real_logits(model(batch.to(device)), batch) for batch in batches)
            for name, logits in alone.items():
                off = float((together[name] - logits).abs().max() / logits.abs().max())
                # Not a number is off, too.
                if not off < TOLERANCE:
                    wrong[name] = max(wrong.get(name, 0.0), off)
    finally:
        model.train(was_training)
    if wrong:
        told = ", ".join(f"{name} (by {off:.1g} of its largest logit)" for name, off in wrong.items())
        raise ZippkitError(
            f"{where}: pack: examples that share a row change each other's logits of {told}; that tower, or a link "
            "into it, does not keep to the mask of documents, so train it without `pack`, or mend it (certificate C5 "
            "of `zippkit verify` tells more)"
        )


def real_logits(outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Logits (N, V) of each tower at its real tokens, row after row."""
    real = {name: tower.order >= 0 for name, tower in batch.towers.items() if name in outputs}
    return {name: outputs[name][there.to(outputs[name].device)] for name, there in real.items()}
