"""How a run is divided among the ranks that torchrun starts: what each holds a part of, and what each holds whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from zippkit.spec.kinds import Strict
from zippkit.spec.phase import Phase
from zippkit.spec.validation import Complaint
from zippkit.spec.words import Place


class Parallel(Strict):
    """What each of several ranks holds; one process alone holds everything."""

    shard: Literal["none", "trained", "all"] = Field(
        "trained",
        description="What is held in parts, one on each rank: nothing; what is trained, with its gradients and the "
        "optimiser's state; or the frozen weights, too.",
    )
    frozen: Place | None = Field(
        None,
        description="Where frozen weights are: `replicate`, whole on every rank; `per_layer` or `root`, in parts that "
        "are brought together layer by layer or all at once. `per_layer` with `shard: all`, else `replicate`, if left "
        "out.",
    )
    replicas: int = Field(
        1,
        gt=0,
        description="Groups of ranks, each of which holds everything: machines with a slow wire between them (HSDP).",
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.frozen is not None and (self.frozen == "replicate") == (self.shard == "all"):
            told = "replicate" if self.shard != "all" else "per_layer or root"
            raise ValueError(f"`shard: {self.shard}` goes with `frozen: {told}`, got `frozen: {self.frozen}`")
        if self.replicas > 1 and self.shard == "none":
            raise ValueError("`shard: none` makes every rank a replica; remove `replicas`")
        return self

    @property
    def frozen_place(self) -> Place:
        """Where frozen weights are."""
        return self.frozen or ("per_layer" if self.shard == "all" else "replicate")

    def place_of(self, placed: Place | None, *, trained: bool) -> Place:
        """Where weights of a tower are.

        Args:
            placed: what the tower's section says.
            trained: whether they are trained.
        """
        if self.shard == "none":
            return "replicate"
        return placed or ("per_layer" if trained else self.frozen_place)

    def misfits(self, phase: Phase) -> Iterator[Complaint]:
        """What of a phase does not go with weights in parts."""
        if self.shard != "none" and phase.optimizer == "adafactor":
            message = (
                "adafactor's state has means over columns, which no rank has whole; expected `parallel: {shard: none}` "
                "with it, or adamw"
            )
            yield ("optimizer",), message
