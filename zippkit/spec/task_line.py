"""A line of ``tasks``: the task alone, or the task with its weight and with what carries the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, TypeAlias

from pydantic import Field

from zippkit.spec.kinds import Strict
from zippkit.spec.shapes import LIST, MAPPING, WORD, WORD_OR_LIST, WORD_OR_MAPPING
from zippkit.spec.task import Task
from zippkit.spec.words import Name


class WeightedTask(Strict):
    """A task, how often it is trained, and where its loss is."""

    task: str = Field(
        description="Such as `speech -> text`; `speech -> [text, speech]` predicts text, then speech; `interleaved` is "
        "every segment of a document."
    )
    weight: float = Field(
        1.0, ge=0, description="Share of the steps, beside other tasks of the same dataset; multiplies the data's size."
    )
    mask_prompt: bool = Field(
        True, description="No loss on what is given; `false` also trains its towers to predict it, where they can."
    )
    loss: list[Name] | None = Field(
        None,
        min_length=1,
        description="The modalities that carry the loss, instead: of documents, all that can be predicted if left out.",
    )

    @property
    def parsed(self) -> Task:
        return Task.parse(self.task)

    def over(self, other: WeightedTask) -> WeightedTask:
        """This line, and what it leaves out as another line of the same task says it."""
        said = self.model_fields_set
        carries = self if said & {"mask_prompt", "loss"} else other
        weight = self.weight if "weight" in said else other.weight
        return WeightedTask(task=self.task, weight=weight, mask_prompt=carries.mask_prompt, loss=carries.loss)


TaskLine: TypeAlias = Annotated[Annotated[str, WORD] | Annotated[WeightedTask, MAPPING], WORD_OR_MAPPING]
Names: TypeAlias = Annotated[
    Annotated[Name, WORD] | Annotated[list[Name], LIST, Field(min_length=1)],
    WORD_OR_LIST,
]
"""One name, or several."""


def as_list(names: Name | list[Name]) -> list[Name]:
    """One name or several as a list."""
    return [names] if isinstance(names, str) else names


def as_lines(lines: Iterable[str | WeightedTask]) -> list[WeightedTask]:
    """Lines of ``tasks`` in their long form."""
    return [WeightedTask(task=line) if isinstance(line, str) else line for line in lines]
