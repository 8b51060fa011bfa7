"""Evaluation while a phase is trained: which checkpoint is the best so far, and whether training should stop."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from zippkit.composition import Composition
from zippkit.spec.dev_evaluation import Best
from zippkit.system.files import remove_abandoned
from zippkit.training.dev_data import DevData
from zippkit.training.dev_scores import Given, Tell, dev_scores

_KEY = "validation"
"""In the manifest of a checkpoint."""


@dataclass(frozen=True)
class Standing:
    """The best evaluation so far; saved with each checkpoint, so that a run that goes on decides as it would have."""

    measures: Mapping[str, Any] = field(default_factory=dict)
    """What the value depends on (`zippkit.spec.dev_evaluation.Validation.measures`)."""
    step: int | None = None
    """Steps that the best one had taken; None before the first."""
    value: float | None = None
    since: int = 0
    """Evaluations since then."""

    def after(self, best: Best, step: int, value: float) -> Standing:
        """The standing after one more evaluation."""
        if math.isfinite(value) and (self.value is None or best.better(value, self.value)):
            return replace(self, step=step, value=value, since=0)
        return replace(self, since=self.since + 1)


class DevWatch:
    """The evaluations of one phase; without dev data there are none."""

    def __init__(self, dev: DevData | None = None, folder: Path | None = None) -> None:
        """Prepare for a phase.

        Args:
            dev: what to measure.
            folder: where the phase's best checkpoints are kept.
        """
        self._dev, self._folder = dev, folder
        self.standing = self._fresh()

    def _fresh(self) -> Standing:
        return Standing(self._dev.how.measures() if self._dev else {})

    def due(self, step: int, *, last: bool) -> bool:
        """Whether to evaluate after so many steps."""
        return self._dev is not None and (last or step % self._dev.how.evaluate_every == 0)

    def look(self, zipped: Composition, step: int, tell: Tell, given: Given = lambda batch: batch) -> dict[str, float]:
        """Evaluate after so many steps (`dev_scores`), and see whether this is the best."""
        assert self._dev is not None, "only where an evaluation is due"
        found = dev_scores(zipped, self._dev, tell, given)
        if (best := self._dev.how.best) is not None:
            self.standing = self.standing.after(best, step, found[best.metric])
        return found

    @property
    def stopped(self) -> bool:
        """Whether the metric has not become better for as long as the recipe is patient."""
        patience = self._dev.how.patience if self._dev else None
        return patience is not None and self.standing.since >= patience

    @property
    def wants_best(self) -> bool:
        """Whether the finished model is the best one instead of the last."""
        return self._dev is not None and self._dev.how.model == "best" and self.standing.step is not None

    @property
    def best(self) -> Path | None:
        """The folder of the best checkpoint so far."""
        if self._folder is None or self.standing.step is None:
            return None
        return self._folder / f"step-{self.standing.step:06d}"

    def __str__(self) -> str:
        """The standing in words."""
        it, best = self.standing, self._dev.how.best if self._dev else None
        if best is None:
            return "there is no best checkpoint"
        since = f"{it.since} evaluations since then" if it.since != 1 else "one evaluation since then"
        return f"{best.metric} was best after step {it.step} ({it.value}), with {since}"

    def drop_others(self, best: Path | None) -> None:
        """Remove other best checkpoints, once a saved checkpoint says which is the best, and what a kill left."""
        if self._folder is not None and self._folder.exists():
            remove_abandoned(self._folder)
            for folder in self._folder.glob("step-*"):
                if folder != best:
                    shutil.rmtree(folder)

    def as_manifest(self) -> dict[str, Any]:
        """The standing, for a checkpoint's manifest."""
        return {_KEY: asdict(self.standing)} if self._dev is not None and self._dev.how.best is not None else {}

    def resume(self, manifest: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; the standing begins anew where another thing was measured."""
        kept = manifest.get(_KEY)
        if kept is not None and kept["measures"] == self._fresh().measures:
            self.standing = Standing(**kept)
