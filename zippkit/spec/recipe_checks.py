"""What does not fit in a recipe: between its phases, its datasets and its spec."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zippkit.errors import did_you_mean
from zippkit.spec.data_section import SINGLE
from zippkit.spec.part_kinds import frozen_parts, group_names
from zippkit.spec.phase import Stage
from zippkit.spec.recipe import Recipe
from zippkit.spec.task import Task, linked_tasks, unread
from zippkit.spec.task_line import WeightedTask, as_lines
from zippkit.spec.tracking import tracker_complaints
from zippkit.spec.validation import Complaint
from zippkit.spec.words import Name
from zippkit.spec.yaml_document import KeyPath


def recipe_complaints(recipe: Recipe, *, sound_spec: bool = True) -> list[Complaint]:
    """List all mistakes in the phases, and between them, the datasets and the spec.

    Args:
        recipe: of sound keys and types.
        sound_spec: False where the spec has mistakes of its own; what only follows from them is left out.
    """
    found = [*_lines(recipe, sound_spec), *_pretraining(recipe), *_datasets(recipe), *_stages(recipe)]
    found += [(("track", *place), message) for place, message in tracker_complaints(recipe.track)]
    if not sound_spec:
        return found
    found += _unserved(recipe)
    if recipe.validation is not None:
        asked = recipe.validation.complaints(recipe.spec, recipe.tasks())
        found += [(("validation", *place), message) for place, message in asked]
    for each in recipe.main_phases:
        if each.phase.tasks is None and not recipe.lines(each.phase):
            said = "every dataset's `tasks` is empty" if linked_tasks(recipe.spec) else "the spec has no links"
            message = f"{said}, so no task follows from it; name the tasks"
            found.append(((*each.key_path, "tasks"), message))
        if isinstance(each.phase, Stage):
            found += [((*each.key_path, "freeze", *place), said) for place, said in _freezing(recipe, each.phase)]
        if each.phase.pack and recipe.spec.contrastive:
            message = "a contrastive loss compares rows, so examples cannot share one; leave `pack` out"
            found.append(((*each.key_path, "pack"), message))
    groups = [(each.key_path, each.phase, group_names(recipe.spec)) for each in recipe.main_phases]
    groups += [(("pretrain", name), phase, [f"towers.{name}"]) for name, phase in recipe.pretrain.items()]
    for key_path, phase, known in groups:
        if recipe.device in ("xla", "tpu") and phase.optimizer == "adafactor":
            message = f"adafactor counts its steps on the host, for which {recipe.device} waits; expected adam or adamw"
            found.append(((*key_path, "optimizer"), message))
        alone = key_path[0] == "pretrain"
        towers = [str(key_path[-1])] if alone else recipe.spec.towers
        contrasts = () if alone else [contrast.label for contrast in recipe.spec.contrastive]
        found += [((*key_path, *place), message) for place, message in phase.memory_misfits(towers, contrasts)]
        for group in phase.learning_rates.keys() - known:
            message = f"no such parameter group{did_you_mean(group, known)}"
            found.append(((*key_path, "learning_rates", group), message))
    return found


def _lines(recipe: Recipe, sound_spec: bool) -> Iterator[Complaint]:
    """Mistakes in single tasks, wherever they are named."""
    places: list[tuple[KeyPath, Sequence[str | WeightedTask] | None]] = [
        *((each.key_path, each.phase.tasks) for each in recipe.main_phases),
        (("evaluate",), recipe.evaluate.tasks),
        (("validation",), recipe.validation.tasks if recipe.validation else None),
        *((("pretrain", name), phase.tasks) for name, phase in recipe.pretrain.items()),
        *((("data", name), source.tasks) for name, source in recipe.sources.items()),
    ]
    for key_path, given in places:
        for i, line in enumerate(as_lines(given or ())):
            for message in _line_complaints(recipe, line, sound_spec):
                yield (*key_path, "tasks", i), message
        if given and not any(line.weight for line in as_lines(given)):
            yield (*key_path, "tasks"), "every task has weight 0, so there is nothing to draw; expected one above 0"
    for i, text in enumerate(recipe.evaluate.tasks or ()):
        if Task.parse(text).interleaved:
            yield ("evaluate", "tasks", i), "a document has no one answer to score; expected tasks such as a -> b"


def _line_complaints(recipe: Recipe, line: WeightedTask, sound_spec: bool) -> Iterator[str]:
    towers, modalities, task = recipe.spec.towers, recipe.spec.modalities, line.parsed
    for name in task.modalities:
        if name not in modalities:
            yield f"no tower is called {name!r}{did_you_mean(name, modalities)}"
        elif name in task.targets and (config := towers[modalities[name]].resolved[0]) and not config.predicts:
            what = "is fed continuous inputs" if config.continuous else "is an encoder"
            yield f"{name!r} {what}, which nothing predicts; it can only be given"
    for name in task.repeated:
        yield f"an example has one {name!r}, so what is to be predicted is given already; name it once"
    for name in line.loss or ():
        if name not in (modalities if task.interleaved else task.modalities):
            known = modalities if task.interleaved else task.modalities
            yield f"loss: the task has no {name!r}{did_you_mean(name, known)}"
        elif name in modalities and (config := towers[modalities[name]].resolved[0]) and not config.predicts:
            yield f"loss: {name!r} is not predicted by anything; leave it out"
    if line.loss is not None and not line.mask_prompt:
        yield "`loss` says already what carries the loss; leave out `mask_prompt`"
    if sound_spec:
        yield from unread(recipe.spec, task)


def _pretraining(recipe: Recipe) -> Iterator[Complaint]:
    towers = recipe.spec.towers
    for name, phase in recipe.pretrain.items():
        if name not in towers:
            yield ("pretrain", name), f"no tower is called {name!r}{did_you_mean(name, towers)}"
        elif towers[name].share_with is not None:
            yield ("pretrain", name), f"the weights are those of {towers[name].share_with!r}; pre-train that tower"
        elif towers[name].weights is not None:
            yield ("pretrain", name), f"towers.{name}.weights is given; remove one of the two"
        elif (config := towers[name].resolved[0]) is not None and not config.predicts:
            fed = "continuous inputs have" if config.continuous else "an encoder has"
            yield ("pretrain", name), f"{fed} no next token to predict; name `weights`, or train it with a link"
        if phase.tasks is not None and [line.task for line in as_lines(phase.tasks)] != [name]:
            yield ("pretrain", name, "tasks"), f"pre-training is on the tower's own modality; expected [{name}]"


def _datasets(recipe: Recipe) -> Iterator[Complaint]:
    """Names of datasets, and their weights."""
    phases: list[tuple[KeyPath, list[Name] | None]] = [
        *((each.key_path, each.phase.datasets) for each in recipe.main_phases),
        *((("pretrain", name), phase.datasets) for name, phase in recipe.pretrain.items()),
        (("evaluate",), recipe.evaluate.datasets),
    ]
    sources = recipe.sources
    single = list(sources) == [SINGLE] and not isinstance(recipe.data, dict)
    for key_path, named in phases:
        for name in dict.fromkeys(named or ()):
            if single:
                yield (*key_path, "data"), f"no dataset is called {name!r}: the recipe's `data` is one path; name it"
            elif name not in sources:
                yield (*key_path, "data"), f"no dataset is called {name!r}{did_you_mean(name, sources)}"
        weights = [source.weight for name, source in sources.items() if named is None or name in named]
        if weights and not any(weight is None or weight > 0 for weight in weights):
            place: KeyPath = ("data",) if named is None else (*key_path, "data")
            yield place, "every dataset has weight 0, so there is nothing to draw; expected one above 0"
    if recipe.temperature != 1 and any(source.weight is not None for source in sources.values()):
        yield ("temperature",), "the datasets' weights say already how they are mixed; remove one of the two"


def _unserved(recipe: Recipe) -> Iterator[Complaint]:
    """Tasks without a dataset and datasets without a task, as far as the recipe alone tells."""
    for each in recipe.main_phases:
        served = recipe.uses(each.phase)
        known = {use.line.parsed for use in served}
        for i, line in enumerate(as_lines(each.phase.tasks or ())):
            if line.parsed not in known and recipe.chosen(each.phase):
                message = f"no dataset of this phase has the task {line.task!r}; add it to the `tasks` of one"
                yield (*each.key_path, "tasks", i), message
        idle = set(each.phase.datasets or ()) & recipe.sources.keys() - {use.dataset for use in served}
        for name in sorted(idle):
            yield (*each.key_path, "data"), f"dataset {name!r} has none of this phase's tasks; leave it out"


def _stages(recipe: Recipe) -> Iterator[Complaint]:
    """Names that stages have in common."""
    names = [each.phase.name for each in recipe.main_phases if isinstance(each.phase, Stage)]
    for i, name in enumerate(names):
        if name in names[:i]:
            yield ("train", i, "name"), f"another stage is called {name!r}; stages need names of their own"


def _freezing(recipe: Recipe, stage: Stage) -> Iterator[Complaint]:
    """What a stage says about parts that are not there, or that the spec freezes; and whether anything is left."""
    groups, towers = group_names(recipe.spec), recipe.spec.towers
    resting = {*(f"towers.{name}" for name, tower in towers.items() if tower.frozen_whole), *frozen_parts(recipe.spec)}
    for part, rules in stage.freeze.items():
        if part not in groups:
            yield (part,), f"no such part{did_you_mean(part, groups)}"
        elif part in resting and (rules is False or (isinstance(rules, dict) and "train" in rules.values())):
            yield (
                (part,),
                f"the spec freezes it, which the certificates prove of the whole run; expected {part}.freeze: false in "
                "the spec, and `true` here in the stages in which it rests",
            )
    if groups and all(group in resting or stage.freeze.get(group) is True for group in groups):
        yield (), "everything is frozen, so there is nothing to train in this stage"
