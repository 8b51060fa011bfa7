"""The recipe: a training run's description, and what does not fit in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from zippkit.errors import did_you_mean
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.dev_evaluation import Validation
from zippkit.spec.kinds import Strict
from zippkit.spec.part_kinds import group_names
from zippkit.spec.phase import Evaluation, Phase
from zippkit.spec.task import Task, linked_tasks, unread
from zippkit.spec.validation import Complaint
from zippkit.spec.words import Name
from zippkit.spec.yaml_document import KeyPath


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
    validation: Validation | None = Field(
        None, description="Evaluation on a dev split while the composition is trained; none if left out."
    )
    evaluate: Evaluation = Field(default_factory=Evaluation, description="How the run is scored.")

    def tasks(self, phase: Phase | None = None) -> list[Task]:
        """The tasks of the main phase, or of another one."""
        wanted = (phase or self.train).tasks
        return [Task.parse(text) for text in wanted] if wanted else linked_tasks(self.spec)

    def scored_tasks(self) -> list[Task]:
        """The tasks that the run is scored on."""
        return [Task.parse(text) for text in self.evaluate.tasks or ()] or self.tasks()

    def complaints(self, *, sound_spec: bool = True) -> list[Complaint]:
        """List all mistakes in the phases, and between them and the spec.

        Args:
            sound_spec: False where the spec has mistakes of its own; what only follows from them is left out.
        """
        found: list[Complaint] = []
        towers = self.spec.towers
        phases: list[tuple[KeyPath, list[str] | None]] = [
            (("train",), self.train.tasks),
            (("evaluate",), self.evaluate.tasks),
            (("validation",), self.validation.tasks if self.validation else None),
        ]
        phases += [(("pretrain", name), phase.tasks) for name, phase in self.pretrain.items()]
        for key_path, tasks in phases:
            for i, text in enumerate(tasks or []):
                task = Task.parse(text)
                said = [*self._task_complaints(task), *(unread(self.spec, task) if sound_spec else ())]
                found += [((*key_path, "tasks", i), message) for message in said]
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
        found += self._validation_complaints()
        groups: list[tuple[KeyPath, Phase, list[str]]] = [(("train",), self.train, group_names(self.spec))]
        groups += [(("pretrain", name), phase, [f"towers.{name}"]) for name, phase in self.pretrain.items()]
        for key_path, phase, known in groups:
            for group in phase.learning_rates.keys() - known:
                message = f"no such parameter group{did_you_mean(group, known)}"
                found.append(((*key_path, "learning_rates", group), message))
        return found

    def _validation_complaints(self) -> Iterator[Complaint]:
        for key_path, message in self.validation.complaints(self.spec, self.tasks()) if self.validation else ():
            yield ("validation", *key_path), message

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
