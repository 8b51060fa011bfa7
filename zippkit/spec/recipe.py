"""The recipe: a training run's description, or what follows from a spec alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field

from zippkit.errors import ZippkitError, did_you_mean
from zippkit.spec.composition_spec import CompositionSpec, Name, TowerSpec
from zippkit.spec.kinds import MOST_TOKENS, Sampling, Strict
from zippkit.spec.part_kinds import part_names
from zippkit.spec.validation import Complaint
from zippkit.spec.yaml_document import Place

# Section 4.1.6 of the paper.
LEARNING_RATE_FROZEN = 1e-3
LEARNING_RATE_UNFROZEN = 5e-4
Beta = Annotated[float, Field(ge=0, lt=1)]


class Task(NamedTuple):
    """Predict one modality after others: written ``speech -> text``, or ``text`` for a tower's own modality.

    Modalities that are simultaneous (`clock: sync`) are predicted together: ``left + right``.
    """

    conditions: tuple[str, ...]
    target: str
    beside: str | None = None
    """What is predicted together with the target."""

    @classmethod
    def parse(cls, text: str) -> Self:
        *conditions, last = (part.strip() for part in text.split("->"))
        beside, plus, target = (part.strip() for part in last.rpartition("+"))
        return cls(tuple(conditions), target, beside if plus else None)

    def check(self, towers: Collection[str]) -> Self:
        """This task, if every modality is a tower.

        Raises:
            ZippkitError: names the one that is not.
        """
        for name in self.modalities:
            if name not in towers:
                raise ZippkitError(f"task {str(self)!r}: no tower is called {name!r}{did_you_mean(name, towers)}")
        return self

    def sees(self) -> set[tuple[str, str]]:
        """(target, source) pairs in which the target comes after the source."""
        order = self.modalities
        pairs = {(later, earlier) for i, later in enumerate(order) for earlier in order[:i] if earlier != later}
        return pairs | ({(self.beside, self.target)} if self.beside else set())

    @property
    def targets(self) -> tuple[str, ...]:
        """What is predicted."""
        return (self.beside, self.target) if self.beside else (self.target,)

    @property
    def modalities(self) -> tuple[str, ...]:
        return (*self.conditions, *self.targets)

    @property
    def multimodal(self) -> bool:
        """What its rows are declared to be: whether they pass the input projections."""
        return len(set(self.modalities)) > 1

    def __str__(self) -> str:
        return " -> ".join((*self.conditions, " + ".join(self.targets)))


class Phase(Strict):
    """One run of the optimiser over one or more tasks."""

    steps: int = Field(gt=0, description="Optimiser steps.")
    tasks: list[str] | None = Field(
        None, description="Such as `speech -> text` or `text`, mixed by data size; every linked direction if left out."
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="Part of the examples to learn from; a smaller part lies inside a larger one."
    )
    batch_size: int = Field(32, gt=0, description="Examples per step.")
    pad_multiple: int = Field(16, gt=0, description="Rows are padded to a multiple of this many tokens.")
    learning_rate: float | None = Field(
        None, gt=0, description="The paper's if left out: 1e-3 with every tower frozen, 5e-4 otherwise."
    )
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Other rates for single groups, such as `towers.speech: 1e-4`."
    )
    warmup: int = Field(0, ge=0, description="Steps in which the rate rises from 0.")
    schedule: Literal["constant", "cosine"] = Field("constant", description="What the rate does after the warm-up.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), strict=False, description="Adam's betas.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradients.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 runs matrix products in bfloat16 (autocast).")
    compile: bool = Field(False, description="Compile forward and loss (torch.compile, a shape once); for long runs.")
    log_every: int = Field(10, gt=0, description="Steps between lines of metrics.")
    save_every: int = Field(200, gt=0, description="Steps between checkpoints; the last step is always saved.")

    def rate(self, step: int) -> float:
        """Factor on the learning rate at ``step`` (from 0)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Evaluation(Strict):
    """How a run is scored."""

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
    def scorer_kind(self) -> str:
        return self.scorer or "moonshine"

    @property
    def all_splits(self) -> list[str]:
        """At least one."""
        return self.splits or [self.split]


class Recipe(Strict):
    """A training run: which composition, on which data, in which phases."""

    name: Name = Field(description="Name of the run.")
    spec: CompositionSpec = Field(description="The composition: a path to its YAML, or the spec itself.")
    data: Annotated[Path, Field(strict=False)] = Field(description="Dataset folder, as `zippkit prepare` writes it.")
    seed: int = Field(0, ge=0, description="Seed of new parameters and of the order of examples.")
    start_from: Annotated[Path, Field(strict=False)] | None = Field(
        None,
        description="A finished run or a checkpoint, of which every tower, link and projection that is also in this "
        "spec is taken by name; what is new starts fresh.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to run.")
    split: str = Field("train", description="Split to train on.")
    pretrain: dict[Name, Phase] = Field(
        default_factory=dict,
        description="Towers to pre-train on their own modality first, each by itself and unfrozen.",
    )
    train: Phase = Field(description="Training of the whole composition.")
    evaluate: Evaluation = Field(default_factory=Evaluation, description="How the run is scored.")

    def tasks(self, phase: Phase | None = None) -> list[Task]:
        """The tasks of the main phase, or of another one."""
        wanted = (phase or self.train).tasks
        return [Task.parse(text) for text in wanted] if wanted else linked_tasks(self.spec)

    def scored_tasks(self) -> list[Task]:
        """The tasks that the run is scored on."""
        return [Task.parse(text) for text in self.evaluate.tasks or ()] or self.tasks()

    def complaints(self, *, sound_spec: bool = True) -> list[Complaint]:
        """What does not fit between the phases and the spec.

        Args:
            sound_spec: False where the spec has mistakes of its own; what only follows from them is left out.
        """
        found: list[Complaint] = []
        towers = self.spec.towers
        phases: list[tuple[Place, list[str] | None]] = [
            (("train",), self.train.tasks),
            (("evaluate",), self.evaluate.tasks),
        ]
        phases += [(("pretrain", name), phase.tasks) for name, phase in self.pretrain.items()]
        for place, tasks in phases:
            for i, text in enumerate(tasks or []):
                task = Task.parse(text)
                said = [*self._task_complaints(task), *(unread(self.spec, task) if sound_spec else ())]
                found += [((*place, "tasks", i), message) for message in said]
        for name, phase in self.pretrain.items():
            if name not in towers:
                found.append((("pretrain", name), f"no tower is called {name!r}{did_you_mean(name, towers)}"))
            elif towers[name].share_with is not None:
                message = f"the weights are those of {towers[name].share_with!r}; pre-train that tower"
                found.append((("pretrain", name), message))
            elif towers[name].weights is not None:
                found.append((("pretrain", name), f"towers.{name}.weights is given; remove one of the two"))
            elif (config := towers[name].resolved[0]) is not None and not config.predicts:
                fed = "continuous inputs have" if config.continuous else "an encoder has"
                message = f"{fed} no next token to predict; name `weights`, or train it with a link"
                found.append((("pretrain", name), message))
            if phase.tasks not in (None, [name]):
                found.append(
                    (("pretrain", name, "tasks"), f"pre-training is on the tower's own modality; expected [{name}]")
                )
        if not sound_spec:
            return found
        if self.train.tasks is None and not linked_tasks(self.spec):
            found.append((("train", "tasks"), "the spec has no links, so no task follows from it; name the tasks"))
        groups: list[tuple[Place, Phase, list[str]]] = [(("train",), self.train, group_names(self.spec))]
        groups += [(("pretrain", name), phase, [f"towers.{name}"]) for name, phase in self.pretrain.items()]
        for place, phase, known in groups:
            for group in phase.learning_rates.keys() - known:
                message = f"no such parameter group{did_you_mean(group, known)}"
                found.append(((*place, "learning_rates", group), message))
        return found

    def _task_complaints(self, task: Task) -> Iterator[str]:
        towers, modalities = self.spec.towers, self.spec.modalities
        for name in task.modalities:
            if name not in modalities:
                yield f"no tower is called {name!r}{did_you_mean(name, modalities)}"
            elif name in task.targets and (config := towers[modalities[name]].resolved[0]) and not config.predicts:
                what = "is fed continuous inputs" if config.continuous else "is an encoder"
                yield f"{name!r} {what}, which nothing predicts; it can only be given"
        for name in dict.fromkeys(name for name in task.targets if task.modalities.count(name) > 1):
            yield f"an example has one {name!r}, so what is to be predicted is given already; name it once"


def unread(spec: CompositionSpec, task: Task) -> Iterator[str]:
    """What a task gives or predicts together, and no link or contrastive loss lets anything that it predicts depend on.

    A condition is read by a later modality of the task that is predicted, or is read itself.
    """
    towers = [spec.modalities.get(name) for name in task.modalities]
    if None in towers or len(set(task.modalities)) < len(task.modalities):
        return  # Told by themselves.
    joined = {(link.source, link.target) for link in spec.links} | {(tower, tower) for tower in towers}
    joined |= {pair for c in spec.contrastive for pair in ((c.source, c.target), (c.target, c.source))}
    n_given = len(task.conditions)
    read = list(range(n_given, len(towers)))
    for i in reversed(range(n_given)):
        if any((towers[i], towers[later]) in joined for later in read):
            read.append(i)
        else:
            name, target = task.modalities[i], " + ".join(task.targets)
            yield f"no link lets {target!r} depend on {name!r}; add a link from it, or leave it out of the task"
    pair = {towers[i] for i in range(n_given, len(towers))}
    if len(pair) > 1 and not any(link.clock == "sync" and {link.source, link.target} == pair for link in spec.links):
        yield f"`+` stands between simultaneous modalities; expected a link with `clock: sync` between {task.targets}"


def linked_tasks(spec: CompositionSpec) -> list[Task]:
    """One task for each linked direction, in spec order, and for each pair of modalities that one tower reads."""
    tasks = [
        Task((link.source,), link.target)
        if link.clock == "turns"
        else Task((), *sorted((link.source, link.target), reverse=True))
        for link in spec.links
    ]
    hosts = spec.modalities
    tasks += [Task((a,), b) for a in hosts for b in hosts if a != b and hosts[a] == hosts[b]]
    return list(dict.fromkeys(tasks))


def group_names(spec: CompositionSpec) -> list[str]:
    """Names of the parameter groups: one for each tower with weights of its own, and one for each part."""
    return [*(f"towers.{name}" for name, tower in spec.towers.items() if tower.share_with is None), *part_names(spec)]


def learning_rates(spec: CompositionSpec, phase: Phase) -> dict[str, float]:
    """Learning rate of each parameter group (the paper's rule where the phase names none)."""
    frozen = all(tower.freeze is True for tower in spec.towers.values())
    rate = phase.learning_rate or (LEARNING_RATE_FROZEN if frozen else LEARNING_RATE_UNFROZEN)
    return {group: phase.learning_rates.get(group, rate) for group in group_names(spec)}


def derived_recipe(spec: CompositionSpec, data: Path = Path("data/NAME"), steps: int = 1000) -> Recipe:
    """The recipe that follows from the spec alone: Adam, the paper's rates, one task for each linked direction."""
    alone = [name for name, tower in spec.towers.items() if not tower.settings.continuous]
    tasks = [str(task) for task in linked_tasks(spec)] or alone
    train = Phase(steps=steps, tasks=tasks, warmup=steps // 20, learning_rates=learning_rates(spec, Phase(steps=steps)))
    return Recipe(name=spec.name, spec=spec, data=data, train=train)


def single_tower(spec: CompositionSpec, name: str) -> CompositionSpec:
    """The composition of one tower alone, unfrozen, for pre-training it."""
    alone = {"freeze": False, "dtype": "fp32", "lora": None}
    without: dict[str, Any] = {"input_projection": None, "extend_vocabulary": {}, "parts": {}}
    tower = spec.towers[name].model_copy(update=alone | without)
    return CompositionSpec(name=name, towers={name: TowerSpec(**tower.model_dump(exclude_unset=True))})


def dump(section: Strict) -> dict[str, Any]:
    """A recipe or spec as plain data, in the words of its YAML, defaults left out."""
    data: dict[str, Any] = section.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return data
