"""The recipe: a training run's description."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.data_section import DataSection, DataSource, Use, data_sources
from zippkit.spec.dev_evaluation import Validation
from zippkit.spec.kinds import Strict
from zippkit.spec.parallel import Parallel
from zippkit.spec.phase import Evaluation, Phase, Stage
from zippkit.spec.shapes import LIST, MAPPING, MAPPING_OR_LIST
from zippkit.spec.task import Task, linked_tasks
from zippkit.spec.task_line import WeightedTask, as_lines
from zippkit.spec.tracking import Tracked
from zippkit.spec.words import Name
from zippkit.spec.yaml_document import KeyPath

DeviceName = Literal["auto", "cpu", "cuda", "xla", "tpu"]

TRAIN = "train"
"""Label of the only phase in which the whole composition is trained."""


class MainPhase(NamedTuple):
    """A phase in which the whole composition is trained."""

    label: str
    """By which the run folder keeps its checkpoints and metrics."""
    key_path: KeyPath
    phase: Phase


class Recipe(Strict):
    """A training run: which composition, on which data, in which phases."""

    name: Name = Field(description="Name of the run.")
    spec: CompositionSpec = Field(description="The composition: a path to its YAML, or the spec itself.")
    data: DataSection = Field(
        description="Dataset folder, as `zippkit prepare` writes it; or several by name, each a folder or a section."
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="Several tasks and datasets are mixed by their numbers of examples to the power 1 / temperature: 1 "
        "by size, larger ones more evenly.",
    )
    seed: int = Field(0, ge=0, description="Seed of new parameters and of the order of examples.")
    start_from: Annotated[Path, Field(strict=False)] | None = Field(
        None,
        description="A finished run or a checkpoint, of which every tower, link and projection that is also in this "
        "spec is taken by name; what is new starts fresh.",
    )
    device: DeviceName = Field(
        "auto",
        description="Where to run: `auto` is the accelerator that torch finds, or the CPU; `xla` needs an environment "
        "of its own (docs/tpu.md).",
    )
    parallel: Parallel = Field(
        default_factory=Parallel, description="What each rank holds, where torchrun starts several of them."
    )
    split: str = Field("train", description="Split to train on.")
    pretrain: dict[Name, Phase] = Field(
        default_factory=dict,
        description="Towers to pre-train on their own modality first, each by itself and unfrozen.",
    )
    train: Annotated[Annotated[Phase, MAPPING] | Annotated[list[Stage], LIST, Field(min_length=1)], MAPPING_OR_LIST] = (
        Field(description="Training of the whole composition: one phase, or a list of stages.")
    )
    validation: Validation | None = Field(
        None, description="Evaluation on a dev split while the composition is trained; none if left out."
    )
    track: list[Tracked] | None = Field(
        None,
        description="Trackers that are told the metrics too, such as `[tensorboard, {wandb: {project: x}}]` "
        "(`zippkit trackers` lists them); TensorBoard, where it is installed, if left out.",
    )
    evaluate: Evaluation = Field(default_factory=Evaluation, description="How the run is scored.")

    @property
    def sources(self) -> dict[Name, DataSource]:
        """The datasets by name; a single one that has no name is called `SINGLE`."""
        return data_sources(self.data)

    @property
    def main_phases(self) -> list[MainPhase]:
        """The phases in which the whole composition is trained, in order."""
        if isinstance(self.train, Phase):
            return [MainPhase(TRAIN, (TRAIN,), self.train)]
        return [MainPhase(f"{TRAIN}.{stage.name}", (TRAIN, i), stage) for i, stage in enumerate(self.train)]

    def chosen(self, phase: Phase) -> dict[Name, DataSource]:
        """The datasets that a phase may learn from."""
        names = phase.datasets
        return {name: each for name, each in self.sources.items() if names is None or name in names}

    def lines(self, phase: Phase) -> list[WeightedTask]:
        """What a phase of the whole composition learns: as it says, or as its datasets and the links say."""
        if phase.tasks:
            return as_lines(phase.tasks)
        sources = self.chosen(phase).values()
        found = [line for source in sources for line in source.lines or ()]
        if any(source.tasks is None for source in sources):
            found += [WeightedTask(task=str(task)) for task in linked_tasks(self.spec)]
        return list({line.parsed: line for line in reversed(found)}.values())[::-1]

    def uses(self, phase: Phase) -> list[Use]:
        """Which tasks a phase of the whole composition learns from which datasets, as far as the recipe tells.

        What a dataset says of a task goes before what the phase says of it; no dataset takes what another one says.
        """
        found: list[Use] = []
        lines = self.lines(phase) if phase.tasks else [WeightedTask(task=line.task) for line in self.lines(phase)]
        for name, source in self.chosen(phase).items():
            own = {line.parsed: line for line in source.lines or ()}
            for line in lines:
                if source.tasks is None or line.parsed in own:
                    found.append(Use(name, own[line.parsed].over(line) if line.parsed in own else line))
        return found

    def pretrain_uses(self, tower: Name) -> list[Use]:
        """The datasets from which a tower may learn its own modality."""
        return [Use(name, WeightedTask(task=tower)) for name in self.chosen(self.pretrain[tower])]

    def tasks(self, phase: Phase | None = None) -> list[Task]:
        """The tasks of one phase of the whole composition, or of all of them."""
        phases = [phase] if phase else [each.phase for each in self.main_phases]
        return list(dict.fromkeys(line.parsed for each in phases for line in self.lines(each)))

    def scored_tasks(self) -> list[Task]:
        """The tasks that the run is scored on, each on its last target; a sequence also on those before."""
        named = [Task.parse(text) for text in self.evaluate.tasks or ()] or self.tasks()
        return list(dict.fromkeys(each for task in named if not task.interleaved for each in task.beginnings))
