"""How a phase optimises: the optimiser, its learning rate over the steps, and what a step costs in memory."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from zippkit.spec.kinds import Strict

Beta = Annotated[float, Field(ge=0, lt=1)]


class Schedule(Strict):
    """How many steps there are, and the factor on the learning rate at each of them."""

    steps: int = Field(gt=0, description="Optimiser steps.")
    warmup: int = Field(0, ge=0, description="Steps in which the rate rises from 0.")
    schedule: Literal["constant", "cosine", "linear", "wsd"] = Field(
        "constant",
        description="What the rate does after the warm-up: it stays, falls to `final` by half a cosine or a straight "
        "line, or stays and falls in a straight line over the last `decay` steps (warm-up, stable, decay).",
    )
    decay: int | None = Field(
        None, gt=0, description="Of `schedule: wsd`: last steps, in which the rate falls; a tenth of all if left out."
    )
    final: float = Field(0.0, ge=0, le=1, description="What is left of the rate in the end, where the schedule falls.")

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        wrong = []
        if self.decay is not None and self.schedule != "wsd":
            wrong.append(f"`decay` is of `schedule: wsd`, not of `{self.schedule}`; remove it")
        if self.final and self.schedule == "constant":
            wrong.append("`final` is of a schedule that falls (cosine, linear, wsd), not of `constant`; remove it")
        if self.decay is not None and self.warmup + self.decay > self.steps:
            both = f"`warmup` {self.warmup} and `decay` {self.decay}"
            wrong.append(f"{both} are more than the {self.steps} steps; make one of them shorter")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def rate(self, step: int) -> float:
        """Factor on the learning rate at ``step`` (from 0); a pure function, so that a run resumes from its step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        first = self.warmup if self.schedule != "wsd" else max(self.warmup, self.steps - self._n_falling)
        progress = min(1.0, max(0, step - first) / max(1, self.steps - first))
        left = 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1 - progress
        return self.final + (1 - self.final) * left

    @property
    def _n_falling(self) -> int:
        return self.decay or max(1, self.steps // 10)


class Optimization(Schedule):
    """The optimiser and its settings."""

    optimizer: Literal["adam", "adamw", "adafactor"] = Field(
        "adam", description="torch's own. Adafactor keeps two vectors instead of two copies of each matrix."
    )
    learning_rate: float | None = Field(
        None, gt=0, description="The paper's if left out: 1e-3 with every tower frozen, 5e-4 otherwise."
    )
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Other rates for single groups, such as `towers.speech: 1e-4`."
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), strict=False, description="Adam's and AdamW's betas.")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="On matrices; norms, gates, biases and embeddings do not decay. `adam` adds it to the gradient "
        "(L2), `adamw` and `adafactor` shrink the weights by it (decoupled).",
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Of trained links and native towers, instead of what their configs say. The paper's is 0.1.",
    )
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradients.")

    @model_validator(mode="after")
    def _optimizer_fits(self) -> Self:
        if self.optimizer == "adafactor" and "betas" in self.model_fields_set:
            raise ValueError("`betas` are of adam and adamw, not of adafactor; remove them")
        return self
