"""A YAML file to a checked CompositionSpec, with every problem at once and no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zippkit.errors import Problem, SpecError, ZippkitError
from zippkit.plan.graph import find_graph
from zippkit.plan.parts import SPEC, checkpoint_folder, compare
from zippkit.plan.phases import unreached
from zippkit.spec.checks.stand_ins import follows_from, inherited, stand_in
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.inheritance import read_document
from zippkit.spec.part_kinds import frozen_parts
from zippkit.spec.recipe import Recipe
from zippkit.spec.recipe_checks import recipe_complaints
from zippkit.spec.shared_weights import with_shared
from zippkit.spec.validation import Complaint, Examined, examine, value_at
from zippkit.spec.yaml_document import Document, KeyPath, beside, override


def resolve_paths(document: Document, key_path: KeyPath = ()) -> Any:
    """The data of the spec at ``key_path``, with the paths of its towers found beside the file in which they stand."""
    data = value_at(document.data, key_path)
    towers = data.get("towers") if isinstance(data, dict) else None
    for name, tower in towers.items() if isinstance(towers, dict) else ():
        place = (*key_path, "towers", name)
        if isinstance(tower, dict) and isinstance(tower.get("weights"), str):
            tower["weights"] = beside(tower["weights"], document.file_of((*place, "weights")))
        config = tower.get("config") if isinstance(tower, dict) else None
        if isinstance(config, dict) and isinstance(config.get("path"), str):
            config["path"] = beside(config["path"], document.file_of((*place, "config", "path")))
    return data


def check_spec(data: Any) -> tuple[CompositionSpec | None, list[Complaint]]:
    """The spec and everything that is wrong with it at once: keys, types, kinds, names, shapes, and the graph."""
    found = examine_spec(data)
    return found.whole, found.complaints


def examine_spec(data: Any) -> Examined[CompositionSpec]:
    """As `check_spec`; where keys or types are wrong, with what is left of the spec without them."""
    given = with_shared(data)
    found = examine(
        CompositionSpec,
        given,
        lambda spec: find_graph(spec)[1],
        stand_in,
        lambda key_path, cuts: follows_from(key_path, cuts, given),
    )
    told = [(key_path, message) for key_path, message in found.complaints if not inherited(key_path, data)]
    return found._replace(complaints=told)


def spec_of(document: Document, key_path: KeyPath = ()) -> CompositionSpec:
    """The spec that stands at ``key_path`` of a YAML file.

    Raises:
        SpecError: every problem found, with its line.
    """
    found = examine_spec(resolve_paths(document, key_path))
    problems = document.told(found.complaints, key_path)
    if found.whole is None or problems:
        raise SpecError(problems)
    return found.whole


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> CompositionSpec:
    """Read and check a composition spec; ``overrides`` are ``key.path=value``.

    Raises:
        SpecError: every problem found, with file, line and key.
    """
    document = read_document(path, overrides)
    if "spec" in document.data and "towers" not in document.data:
        message = "a recipe, whose key `spec` says where the composition is; expected a spec, with `towers`"
        raise SpecError([document.problem(("spec",), message)])
    return spec_of(document)


def _starting_point_complaints(recipe: Recipe) -> Iterator[Complaint]:
    """Yield all misfits between a recipe's spec and the checkpoint that it starts from."""
    if recipe.start_from is None:
        return
    try:
        spec = load_spec(checkpoint_folder(recipe.start_from) / SPEC)
        transfer, misfits = compare(spec, recipe.spec)
    except ZippkitError as error:
        yield ("start_from",), f"not a finished run or a checkpoint: {error}"
        return
    for misfit in misfits:
        yield ("start_from",), misfit
    for name in recipe.pretrain:
        if f"towers.{name}" in transfer.taken:
            yield ("pretrain", name), f"tower {name!r} comes trained from {recipe.start_from}; remove one of the two"


def frozen_at_random(found: CompositionSpec | Recipe) -> dict[KeyPath, str]:
    """What is frozen with the values that it is built with, by its section, and for each what to do about it.

    Sound, and hardly ever meant: such a tower, link or input projection knows nothing, and nothing trains it. A recipe
    knows more than its spec: it may pre-train a tower, or take any of them from what it starts from.
    """
    spec = found.spec if isinstance(found, Recipe) else found
    filled: set[str] = set()
    if isinstance(found, Recipe):
        filled |= {f"towers.{name}" for name in found.pretrain}
        if found.start_from is not None:
            there = load_spec(checkpoint_folder(found.start_from) / SPEC)
            filled |= set(compare(there, spec)[0].taken)
    where = "" if isinstance(found, Recipe) else ", unless a recipe pre-trains it or starts from a run that has it"
    told: dict[KeyPath, str] = {
        ("towers", name): f"the tower is frozen and has no weights, so it keeps its random values{where}; expected "
        "`weights`"
        for name, tower in spec.towers.items()
        if tower.freezes and tower.share_with is None and f"towers.{name}" not in filled and not tower.has_weights
    }
    sections: dict[str, KeyPath] = {f"links.{link.label}": ("links", i) for i, link in enumerate(spec.links)}
    where = "" if isinstance(found, Recipe) else ", unless a recipe starts from a run that has it"
    for part in frozen_parts(spec):
        if part not in filled:
            section = sections.get(part, ("towers", part.partition(".")[2], "input_projection"))
            told[section] = f"it is frozen and keeps the values that it is built with{where}; expected `start_from`"
    return told


def cautions(path: str | Path, found: CompositionSpec | Recipe) -> list[Problem]:
    """Warnings of `zippkit check` about a sound spec or recipe, as `load_any` gave it."""
    document = read_document(path)
    key_path: KeyPath = ("spec",) if isinstance(found, Recipe) else ()
    if key_path and isinstance(document.data["spec"], str):
        document, key_path = read_document(beside(document.data["spec"], document.file_of(key_path))), ()
    told = frozen_at_random(found)
    return [document.problem((*key_path, *section, "freeze"), message) for section, message in told.items()]


class _Inner(NamedTuple):
    """A recipe's spec."""

    problems: list[Problem]
    spec: CompositionSpec | None
    """The rest of it, if it has problems."""
    names_known: bool = True
    """Whether every tower and modality that the file names is still there."""


def _inner_spec(document: Document, overrides: Sequence[str]) -> _Inner:
    """Look at the recipe's spec, whether it is in a file of its own or in the recipe."""
    inside = [setting for setting in overrides if setting.startswith("spec.")]
    override(document, [setting for setting in overrides if setting not in inside])
    given = document.data.get("spec")
    try:
        if isinstance(given, str):
            # Overrides reach into the spec's own file, and its problems are told with that file's lines.
            file = read_document(beside(given, document.file_of(("spec",))), [s.removeprefix("spec.") for s in inside])
            found = examine_spec(resolve_paths(file))
            problems = file.told(found.complaints)
        else:
            override(document, inside)
            if "spec" not in document.data:
                return _Inner([], None)
            found = examine_spec(resolve_paths(document, ("spec",)))
            problems = document.told(found.complaints, ("spec",)) if found.complaints else []
    except SpecError as error:
        return _Inner(list(error.problems), None)
    gone = [cut for cut in found.cuts if cut[:1] == ("towers",) and (len(cut) < 3 or cut[2] == "extend_vocabulary")]
    return _Inner(problems, found.rest, not gone)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, started: bool = False) -> Recipe:
    """Read and check a recipe with its spec; ``overrides`` are ``key.path=value``.

    A run that has ``started`` has taken over what it started from, which may be gone by now.

    Raises:
        SpecError: every problem found, with file, line and key.
    """
    document = read_document(path)
    if "towers" in document.data and "spec" not in document.data:
        message = f"a spec; expected a recipe, which `zippkit recipe {path}` derives from it"
        raise SpecError([document.problem(("towers",), message)])
    return recipe_of(document, overrides, started=started)


def recipe_of(document: Document, overrides: Sequence[str] = (), *, started: bool = False) -> Recipe:
    """The recipe that a YAML document holds; its paths are looked up beside the document's file.

    Raises:
        SpecError: as `load_recipe`.
    """
    inner = _inner_spec(document, overrides)
    _find_paths(document)

    def look(recipe: Recipe) -> list[Complaint]:
        if inner.problems:
            return recipe_complaints(recipe, sound_spec=False) if inner.names_known else []
        found = recipe_complaints(recipe) + ([] if started else list(_starting_point_complaints(recipe)))
        return found or list(unreached(recipe))

    data = document.data if inner.spec is None else document.data | {"spec": inner.spec}
    found = examine(Recipe, data, look, stand_in)
    # What is wrong with the spec has been told already, place by place.
    complaints = [each for each in found.complaints if each[0][:1] != ("spec",) or not inner.problems]
    problems = list(dict.fromkeys([*inner.problems, *document.told(complaints)]))
    if found.whole is None or problems:
        raise SpecError(problems)
    return found.whole


def _find_paths(document: Document) -> None:
    """Look up the recipe's own paths beside the file that names them."""
    data = document.data.get("data")
    places: list[KeyPath] = [("data",), ("start_from",)]
    for name, source in data.items() if isinstance(data, dict) else ():
        places.append(("data", name, "path") if isinstance(source, dict) else ("data", name))
    for *around, key in places:
        section, place = value_at(document.data, tuple(around)), (*around, key)
        if isinstance(section.get(key), str):
            section[key] = beside(section[key], document.file_of(place))


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> CompositionSpec | Recipe:
    """Read and check a spec or a recipe, whichever the file holds: a recipe has a key ``spec``.

    Raises:
        SpecError: every problem found, with file, line and key.
    """
    document = read_document(path)
    if "spec" in document.data:
        return recipe_of(document, overrides)
    override(document, overrides)
    return spec_of(document)


def recipe_at(path: str | Path, overrides: Sequence[str] = ()) -> Recipe | None:
    """The recipe of a file or a run; None where there is a spec or a checkpoint.

    Raises:
        SpecError: every problem found, with file, line and key.
    """
    path = Path(path)
    if path.is_dir():
        started = path / "recipe.yaml"
        return load_recipe(started, started=True) if started.exists() else None
    found = load_any(path, overrides)
    return found if isinstance(found, Recipe) else None


def spec_at(path: str | Path, overrides: Sequence[str] = ()) -> CompositionSpec:
    """The composition of a spec, a recipe, a checkpoint or a run, whichever is there.

    Raises:
        SpecError: every problem found, with file, line and key.
    """
    path = Path(path)
    if path.is_dir():
        started = path / "recipe.yaml"
        if started.exists() and not (path / "model").exists():
            return load_recipe(started, [f"spec.{setting}" for setting in overrides], started=True).spec
        return load_spec(checkpoint_folder(path) / SPEC, overrides)
    found = load_any(path, overrides)
    return found.spec if isinstance(found, Recipe) else found
