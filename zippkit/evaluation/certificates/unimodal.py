"""C2: a unimodal row through the zipped model is the tower alone, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zippkit.batch.batch import Batch
from zippkit.composition import Composition
from zippkit.evaluation.certificates.probe import (
    Draws,
    acting_sites,
    draws_for,
    kept_apart,
    mixed_batch,
    position,
    real,
    through,
    to_device,
    with_states,
    with_zero_inits_randomized,
)
from zippkit.evaluation.certificates.report import RefutedError
from zippkit.model.run_tower import tower_logits
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.plan import Plan


@torch.no_grad()
def towers_alone_are_untouched(zipped: Composition) -> str:
    """Certificate C2: rows that are declared unimodal, in a batch of such rows, and beside multimodal ones.

    Raises:
        RefutedError: names the tower and what stands in its way.
    """
    model = with_zero_inits_randomized(zipped.model)
    draws = draws_for(zipped)
    mixed = mixed_batch(zipped, draws)
    for i, name in enumerate(zipped.graph.towers):
        alone = to_device(zipped, [draws.row([name] * n) for n in (1, 2, 3)], False)
        _Case(model, draws, name, alone, range(alone.size)).demand_equal("in a batch of unimodal rows")
        _Case(model, draws, name, mixed, [i]).demand_equal("beside multimodal rows")
    where = "in batches of their own and beside multimodal rows"
    return f"{len(zipped.graph.towers)} towers, {where}{kept_apart(model)}"


@dataclass(frozen=True)
class _Case:
    """One tower's unimodal rows in one batch."""

    model: ZippedModel
    draws: Draws
    name: str
    batch: Batch
    rows: Sequence[int]

    def demand_equal(self, where: str) -> None:
        """Check that the zipped model gives these rows what the tower alone gives the same batch.

        Logits are compared; states where the tower has no head.
        """
        name, inputs = self.name, self.batch.towers[self.name]
        expected = tower_logits(self.model.tower(name), self.model.known(name, inputs))
        wrong = self._differing(self.model(with_states(self.model, self.batch))[name], expected).nonzero()
        if len(wrong):
            place = position(name, inputs, *wrong[0].tolist())
            raise RefutedError(f"{place}, {where}, differs from {name} alone: {self._culprit(expected)}")

    def _differing(self, logits: Tensor, expected: Tensor) -> Tensor:
        """(B, T) bool: real positions of the rows whose logits differ in any bit."""
        ours = torch.zeros(self.batch.size, 1, dtype=torch.bool, device=logits.device)
        ours[list(self.rows)] = True
        # Ids by which a vocabulary was extended come last; the tower alone knows nothing of them.
        own = logits[..., : expected.shape[-1]]
        return (own != expected).any(dim=-1) & real(self.batch.towers[self.name]) & ours

    def _culprit(self, expected: Tensor) -> str:
        """Change the other rows, then run the tower without links, and then with one link at a time."""
        model, name, inputs = self.model, self.name, self.batch.towers[self.name]
        others = real(inputs)
        others[list(self.rows)] = False
        changed = self.draws.changed(self.batch, {name: others}).towers[name]
        if self._differing(tower_logits(model.tower(name), model.known(name, changed)), expected).any():
            return f"{name} mixes the rows of a batch"
        if self._differs(through(model.plan, name), expected):
            projected = name in model.groups["input_projections"]
            return "its input projection is not bypassed" if projected else "two runs of the tower do not agree"
        for site in acting_sites(model.plan):
            reads = site.target == name and site.source in self.batch.towers
            if reads and self._differs(through(model.plan, name, [site]), expected):
                return f"link {site.link}.{site.index} is not the identity where it is blind"
        return "its links together are not the identity where they are blind"

    def _differs(self, plan: Plan, expected: Tensor) -> bool:
        logits = self.model.run(plan, self.batch.towers, self.batch.multimodal)[self.name]
        return bool(self._differing(logits, expected).any())
