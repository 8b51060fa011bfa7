"""What each phase of a recipe trains and learns from, and tasks from which nothing can be learnt; no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zippkit.plan.graph import build_graph
from zippkit.plan.plan import Wanted, build_plan
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.part_kinds import frozen_parts, group_names
from zippkit.spec.phase import Phase, Stage
from zippkit.spec.recipe import Recipe
from zippkit.spec.task_line import WeightedTask
from zippkit.spec.validation import Complaint


def wanted_by(spec: CompositionSpec, line: WeightedTask) -> Wanted:
    """What a run of the plan is for, on rows of a task."""
    graph, task = build_graph(spec), line.parsed
    host = {name: modality.tower for name, modality in graph.modalities.items()}
    present = set(graph.towers) if task.interleaved else {host[name] for name in task.modalities}
    carrying = line.loss or (task.targets if line.mask_prompt and not task.interleaved else sorted(present))
    heads = {host[name] for name in carrying}
    sees = {(host[later], host[earlier]) for later, earlier in task.sees()}
    if task.interleaved:
        sees = {(site.target, site.source) for site in graph.sites}
    ops = build_plan(graph).ops
    absent = {op.part for op in ops if op.tower not in present}
    parts = {op.part for op in ops if op.part is not None} - absent
    predicting = {name for name in heads if graph.towers[name].predicts}
    return Wanted(heads=predicting, sees=sees, parts=parts)


def reached(spec: CompositionSpec, line: WeightedTask) -> set[str]:
    """Names of the parts, towers among them, through which a task's loss goes."""
    found: set[str] = set()
    groups = [group.partition(".") for group in group_names(spec)]
    for op in build_plan(build_graph(spec)).prune(wanted_by(spec, line)).ops:
        owner = spec.towers[op.tower].share_with or op.tower
        found |= {f"towers.{owner}", f"links.{op.site.link}" if op.site else "", op.part or ""}
        around = [g for g, _, name in groups if name in (op.tower, owner) and g not in ("links", "contrastive")]
        found |= {f"{g}.{name}" for g in around for name in (op.tower, owner)}
    if not line.parsed.multimodal:
        found = {part for part in found if not part.startswith("input_projections.")}
    return found


def trained_parts(spec: CompositionSpec, phase: Phase) -> list[str]:
    """Names of the parts of which a phase of the whole composition trains something, as far as the recipe tells."""
    resting = {*(f"towers.{name}" for name, tower in spec.towers.items() if tower.frozen_whole), *frozen_parts(spec)}
    if isinstance(phase, Stage):
        resting |= {part for part, rules in phase.freeze.items() if rules is True}
    return [group for group in group_names(spec) if group not in resting]


def filled_in(recipe: Recipe) -> Recipe:
    """The recipe with what follows from it written down: the tasks of each stage, and the rates of what it trains."""
    if isinstance(recipe.train, Phase):
        return recipe
    stages = []
    for stage in recipe.train:
        trained, rates = trained_parts(recipe.spec, stage), learning_rates(recipe.spec, stage)
        lines: list[str | WeightedTask] = [*(stage.tasks or (line.task for line in recipe.lines(stage)))]
        update = {"tasks": lines, "learning_rates": {part: rates[part] for part in trained}}
        stages.append(stage.model_copy(update=update))
    return recipe.model_copy(update={"train": stages})


def told_phases(recipe: Recipe) -> Iterator[str]:
    """A line for each phase of the whole composition: its steps, what it trains, its tasks and their datasets."""
    for label, _, phase in recipe.main_phases:
        parts = ", ".join(trained_parts(recipe.spec, phase))
        learnt: dict[str, list[str]] = {}
        for use in recipe.uses(phase):
            learnt.setdefault(use.line.task, []).append(use.dataset)
        tasks = "; ".join(
            task if isinstance(recipe.data, Path) else f"{task} ({', '.join(names)})" for task, names in learnt.items()
        )
        yield f"{label}: {phase.steps} steps train {parts} on {tasks}"


def unreached(recipe: Recipe) -> Iterator[Complaint]:
    """Tell of tasks of a sound recipe whose loss reaches nothing that is trained."""
    for each in recipe.main_phases:
        trained = trained_parts(recipe.spec, each.phase)
        for i, line in enumerate(recipe.lines(each.phase)):
            if line.weight and not reached(recipe.spec, line).intersection(trained):
                place = (*each.key_path, "tasks", i) if each.phase.tasks else (*each.key_path, "tasks")
                what = ", ".join(trained) or "nothing"
                yield place, f"nothing that is trained has a part in {line.task!r} (trained: {what}); leave it out"
