"""The section ``data`` of a recipe: one dataset folder, or several by name, each with its weight, split and tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

from pydantic import Field

from zippkit.spec.kinds import Strict
from zippkit.spec.shapes import MAPPING, WORD, WORD_OR_MAPPING
from zippkit.spec.task_line import TaskLine, WeightedTask, as_lines
from zippkit.spec.words import Name

SINGLE = "data"
"""The name of a dataset that has none, because it is the recipe's only one."""
Folder = Annotated[Path, Field(strict=False)]


class DataSource(Strict):
    """One of several datasets."""

    path: Folder = Field(description="Dataset folder, as `zippkit prepare` writes it.")
    weight: float | None = Field(
        None,
        ge=0,
        description="Its share of the steps beside the other datasets; give one to each or to none. If left out, every "
        "task of every dataset counts by its examples.",
    )
    split: str | None = Field(None, description="Split to train on; the recipe's if left out.")
    dev: str | None = Field(
        None, description="Split on which it is looked at while training; that of `validation` if left out."
    )
    tasks: list[TaskLine] | None = Field(
        None,
        description="What the whole composition learns from it; every task of the phase if left out, and nothing, as "
        "for a corpus to pre-train on, if the list is empty.",
    )

    @property
    def lines(self) -> list[WeightedTask] | None:
        """Its tasks in their long form."""
        return None if self.tasks is None else as_lines(self.tasks)


DataSection: TypeAlias = Annotated[
    Annotated[Folder, WORD]
    | Annotated[
        dict[
            Name,
            Annotated[Annotated[Folder, WORD] | Annotated[DataSource, MAPPING], WORD_OR_MAPPING],
        ],
        MAPPING,
        Field(min_length=1),
    ],
    WORD_OR_MAPPING,
]


def data_sources(section: Path | dict[Name, Path | DataSource]) -> dict[Name, DataSource]:
    """All datasets by name."""
    given = {SINGLE: section} if isinstance(section, Path) else section
    return {name: DataSource(path=each) if isinstance(each, Path) else each for name, each in given.items()}


class Use(NamedTuple):
    """A task that a phase learns from a dataset."""

    dataset: Name
    line: WeightedTask
