"""Derives from a spec alone: learning rates, a recipe, the composition of a single tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import Strict
from zippkit.spec.part_kinds import frozen_parts, group_names
from zippkit.spec.phase import Phase, Stage
from zippkit.spec.recipe import Recipe
from zippkit.spec.task import linked_tasks
from zippkit.spec.task_line import WeightedTask
from zippkit.spec.tower_spec import TowerSpec

# Section 4.1.6 of the paper.
LEARNING_RATE_FROZEN = 1e-3
LEARNING_RATE_UNFROZEN = 5e-4


def learning_rates(spec: CompositionSpec, phase: Phase) -> dict[str, float]:
    """Learning rate of each parameter group, frozen or not (the paper's rule where the phase names none)."""
    resting = phase.freeze if isinstance(phase, Stage) else {}
    frozen = all(tower.freeze is True or resting.get(f"towers.{name}") is True for name, tower in spec.towers.items())
    rate = phase.learning_rate or (LEARNING_RATE_FROZEN if frozen else LEARNING_RATE_UNFROZEN)
    return {group: phase.learning_rates.get(group, rate) for group in group_names(spec)}


def derived_recipe(spec: CompositionSpec, data: Path = Path("data/NAME"), steps: int = 1000) -> Recipe:
    """The recipe that follows from the spec alone: Adam, the paper's rates, one task for each linked direction."""
    alone = [name for name, tower in spec.towers.items() if not tower.settings.continuous]
    tasks: list[str | WeightedTask] = [str(task) for task in linked_tasks(spec)] or [*alone]
    frozen = set(frozen_parts(spec))
    rates = {group: rate for group, rate in learning_rates(spec, Phase(steps=steps)).items() if group not in frozen}
    train = Phase(steps=steps, tasks=tasks, warmup=steps // 20, learning_rates=rates)
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
