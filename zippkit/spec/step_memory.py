"""How a phase's step is cut into pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from zippkit.errors import did_you_mean
from zippkit.spec.kinds import Strict
from zippkit.spec.validation import Complaint


class StepMemory(Strict):
    """The rows of a step, and how much of it is held at once."""

    batch_size: int = Field(32, gt=0, description="Examples per step.")
    accumulate: int = Field(
        1,
        gt=0,
        description="Parts in which a step's examples are run one after the other; gradients add up to those of the "
        "whole step, whose loss is a mean over all of its tokens.",
    )
    logits_mib: int = Field(
        64,
        gt=0,
        description="Largest table of logits to hold, in MiB: a larger one is never made, but computed where there are "
        "targets, in chunks of this size, each scored and gone before the next.",
    )
    recompute: bool | list[str] = Field(
        False,
        description="`true`, or names of towers: what their layers and the links into them compute on the way to the "
        "loss is not kept for the backward pass but computed again there, layer by layer.",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 runs matrix products in bfloat16 (autocast).")
    parameters: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16 holds trained weights of linear maps in bfloat16 while a step runs; the optimiser changes "
        "their fp32 masters, which are saved.",
    )
    compile: bool = Field(
        False,
        description="Compile layers and links' sites (torch.compile), equal ones and each shape once; for long runs.",
    )

    @field_validator("recompute", mode="plain", json_schema_input_type=bool | list[str])
    @classmethod
    def _recompute(cls, value: Any) -> bool | list[str]:
        """One message instead of one for each member of the union."""
        if isinstance(value, bool) or (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            return cast("bool | list[str]", value)
        raise ValueError(f"expected true, false, or a list of towers such as [text], got {value!r}")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        wrong = []
        if self.accumulate > self.batch_size:
            wrong.append(
                f"`accumulate` {self.accumulate} is more parts than `batch_size` {self.batch_size} has examples; "
                "batch_size counts the examples of the whole step"
            )
        if self.recompute and self.compile:
            wrong.append("the compiler decides by itself what is computed twice; remove `recompute` or `compile`")
        if self.parameters == "bf16" and self.precision != "bf16":
            wrong.append("`parameters: bf16` is multiplied in bfloat16; expected `precision: bf16` with it")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def memory_misfits(self, towers: Collection[str], contrasts: Sequence[str] = ()) -> Iterator[Complaint]:
        """What does not go with a composition of these towers and contrastive losses."""
        for i, name in enumerate(self.recompute if isinstance(self.recompute, list) else ()):
            if name not in towers:
                yield ("recompute", i), f"no tower is called {name!r}{did_you_mean(name, towers)}"
        if self.accumulate > 1 and contrasts:
            names = ", ".join(map(repr, contrasts))
            yield (
                ("accumulate",),
                f"the contrastive loss {names} compares all rows of a step with each other, which are not there at "
                "once; remove `accumulate`, or make `batch_size` smaller",
            )
