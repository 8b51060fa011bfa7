"""A phase of training, and how a run is scored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from zippkit.spec.kinds import Strict
from zippkit.spec.optimization import Optimization
from zippkit.spec.packing import Packing
from zippkit.spec.sampling import MOST_TOKENS, Sampling
from zippkit.spec.shapes import MAPPING, WORD, WORD_OR_MAPPING
from zippkit.spec.source_cache import CacheSources
from zippkit.spec.step_memory import StepMemory
from zippkit.spec.task_line import Names, TaskLine, as_list
from zippkit.spec.words import Name

Rules = Annotated[
    Annotated[bool, WORD] | Annotated[dict[str, Literal["freeze", "train"]], MAPPING, Field(min_length=1)],
    WORD_OR_MAPPING,
]
"""Whether a part is frozen, or which of its parameters are, by name pattern."""


class Phase(Optimization, StepMemory, Packing):
    """One run of the optimiser over one or more tasks."""

    tasks: list[TaskLine] | None = Field(
        None,
        description="Such as `speech -> text` or `text`, mixed by data size; those that the datasets name, and every "
        "linked direction, if left out.",
    )
    data: Names | None = Field(
        None, description="The dataset to learn from, or a list of several, by name; all that serve if left out."
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="Part of the examples to learn from; a smaller part lies inside a larger one."
    )
    pad_multiple: int = Field(16, gt=0, description="Rows are padded to a multiple of this many tokens.")
    cache_sources: CacheSources = Field(
        None,
        description="`true` or a folder: states of frozen towers that links read are computed once, and kept there.",
    )
    log_every: int = Field(10, gt=0, description="Steps between lines of metrics.")
    save_every: int = Field(200, gt=0, description="Steps between checkpoints; the last step is always saved.")
    save_async: bool = Field(
        False,
        description="Checkpoints are written in the background, from a copy in the host's memory, while steps go on; "
        "the next one, and the end, waits for it.",
    )

    @property
    def datasets(self) -> list[Name] | None:
        """Names of the datasets that it asks for; None for all."""
        return None if self.data is None else as_list(self.data)


class Stage(Phase):
    """One of several phases in which the whole composition is trained, one after the other."""

    name: Name = Field(description="Name of the stage; its checkpoints are those of the phase `train.<name>`.")
    freeze: dict[str, Rules] = Field(
        default_factory=dict,
        description="Parts that rest in this stage, such as `towers.speech: true` or `links.speech_to_text: true`; or "
        "rules by pattern for the parameters of one, as in a tower's `freeze`. The spec's own freezing goes before it.",
    )


class Evaluation(Strict):
    """How a run is scored."""

    data: Names | None = Field(
        None, description="The dataset to score, or a list of several, by name; those of the scored tasks if left out."
    )

    split: str = Field("test", description="Split of the dataset.")
    splits: list[str] | None = Field(
        None, min_length=1, description="Several splits instead of `split`; the first is the one that reports show."
    )
    tasks: list[str] | None = Field(
        None, description="Tasks that end in text or in speech; the trained ones if left out."
    )
    batch_size: int = Field(64, gt=0, description="Examples decoded together.")
    max_tokens: int = Field(256, gt=0, le=MOST_TOKENS, description="Longest answer, in tokens.")
    limit: int | None = Field(None, gt=0, description="Score only the first so many examples.")
    sampling: dict[Name, Sampling] = Field(
        default_factory=dict,
        description="How tokens of each modality are chosen, as `speech: {temperature: 0.8}`; greedily if left out.",
    )
    scorer: str | None = Field(
        None,
        description="Recogniser that judges generated speech (`zippkit scorers` lists them); moonshine if left out and "
        "installed, otherwise such tasks are passed over.",
    )
    scorer_config: dict[str, Any] = Field(default_factory=dict, description="The scorer's own settings.")
    best_of: int = Field(
        1, gt=0, description="Generated and true units are turned into sound with so many seeds; the best one counts."
    )
    retention: str | None = Field(
        None,
        description="Split on which each tower's own loss is measured, before and after; the scored one "
        "for a tower that has no examples there, and if left out.",
    )
    samples: int = Field(3, ge=0, description="Sounds to keep, of each task that ends in speech.")

    @property
    def datasets(self) -> list[Name] | None:
        """Names of the datasets to score; None for those of the scored tasks."""
        return None if self.data is None else as_list(self.data)

    @property
    def scorer_kind(self) -> str:
        return self.scorer or "moonshine"

    @property
    def all_splits(self) -> list[str]:
        """At least one."""
        return self.splits or [self.split]
