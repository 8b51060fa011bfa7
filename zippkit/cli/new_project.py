"""``zippkit init``: a commented spec and recipe for the towers that the user names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml
from pydantic import BaseModel

from zippkit.data.manifest import Column, read_dataset_manifest
from zippkit.errors import ZippkitError
from zippkit.loading import load_recipe, load_spec
from zippkit.spec import registry
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import TOWER_FILE, TowerConfig, read_json
from zippkit.spec.link_spec import LinkSpec
from zippkit.spec.phase import Evaluation, Phase
from zippkit.spec.task import linked_tasks
from zippkit.spec.tower_spec import TowerSpec
from zippkit.system.files import write_text

FRESH = {"dim": 256, "n_layers": 6, "n_heads": 4}
"""Sizes of a tower that is trained from nothing, where its kind asks for them."""
UNITS = {"vocab_size": 1026, "frame": {"begin": 1024, "end": 1025}}
"""Ids of such a tower where no dataset tells them."""
HINTS: dict[type[BaseModel], dict[str, str]] = {
    TowerSpec: {
        "freeze": "true",
        "lora": '{rank: 8, pattern: "*_proj.weight"}',
        "input_projection": "{depth: 2}",
        "dtype": "auto",
    },
    LinkSpec: {"source_every": "2", "source": "final", "projection": "{depth: 3}"},
    Phase: {"batch_size": "32", "learning_rate": "5e-4", "precision": "bf16", "save_every": "200"},
    Evaluation: {"max_tokens": "256", "sampling": "{speech: {temperature: 0.8}}", "scorer": "moonshine"},
}
"""Keys that are worth knowing of, each with an example; those that are not given are shown as comments."""
WIDTH = 120


def new_project(out: Path, named: Sequence[str], data: Path | None = None) -> list[Path]:
    """Write ``spec.yaml`` and ``recipe.yaml`` into a folder.

    Args:
        out: the folder; there must be no such file in it yet.
        named: ``name=KIND`` or ``name=FOLDER`` for each tower, and ``name.key=value`` for its config.
        data: a dataset, whose vocabularies and frames the towers are given.

    Returns:
        The two files.

    Raises:
        ZippkitError: no tower, an unknown kind, a folder that is no model, a file that is there already, or settings
            with which the spec would not be sound; nothing is written then.
    """
    files = [out / "spec.yaml", out / "recipe.yaml"]
    for file in files:
        if file.exists():
            raise ZippkitError(f"{file}: exists already; choose another folder")
    towers = _towers(named, out, read_dataset_manifest(data).modalities if data is not None else {})
    name = re.sub(r"\W+", "_", out.resolve().name.casefold()).strip("_")
    spec: dict[str, Any] = {"name": name if name[:1].isalpha() else f"project_{name}", "towers": towers}
    out.mkdir(parents=True, exist_ok=True)
    try:
        write_text(files[0], yaml.safe_dump(spec, sort_keys=False))
        spec["links"] = _links(load_spec(files[0]))
        write_text(files[0], "\n".join(_spec_lines(spec)) + "\n")
        write_text(files[1], "\n".join(_recipe_lines(load_spec(files[0]), out, data)) + "\n")
        load_recipe(files[1])
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    return files


def _towers(named: Sequence[str], out: Path, columns: Mapping[str, Column]) -> dict[str, dict[str, Any]]:
    """The section of each tower."""
    towers: dict[str, dict[str, Any]] = {}
    for word in named:
        name, equals, given = word.partition("=")
        name, dot, key = name.partition(".")
        if not equals or not given or (dot and name not in towers):
            raise ZippkitError(
                f"init: got {word!r}; expected name=KIND or name=FOLDER for a tower, such as speech=decoder, and then "
                "name.key=value for its config, such as speech.dim=512"
            )
        if dot:
            towers[name]["config"][key] = yaml.safe_load(given)
        else:
            towers[name] = _tower(given, out, columns.get(name))
    if not towers:
        raise ZippkitError("init: name the towers, as in: zippkit init mine text=path/to/model speech=decoder")
    return towers


def _tower(given: str, out: Path, column: Column | None) -> dict[str, Any]:
    """The section of one tower: a registered kind, or a folder of a model that one of the kinds runs."""
    if Path(given).is_dir():
        return _pretrained(Path(given), out)
    cls: type[TowerConfig] = registry.config_class(registry.TOWERS, given)
    needed = {name for name, field in cls.model_fields.items() if field.is_required()}
    config: dict[str, Any] = {key: value for key, value in FRESH.items() if key in needed}
    section: dict[str, Any] = {"kind": given, "config": config}
    if column is not None and column.vocab_size is not None and "vocab_size" in cls.model_fields:
        config["vocab_size"] = column.vocab_size
        if column.begin is not None and column.end is not None:
            section["frame"] = {"begin": column.begin, "end": column.end}
    elif "vocab_size" in needed:
        config["vocab_size"], section["frame"] = UNITS["vocab_size"], UNITS["frame"]
    return section


def _pretrained(folder: Path, out: Path) -> dict[str, Any]:
    """The section of a tower that is in a folder, frozen."""
    path = os.path.relpath(folder.resolve(), out.resolve())
    if (folder / TOWER_FILE).exists():
        return {"kind": read_json(folder / TOWER_FILE).get("kind"), "config": {}, "weights": path, "freeze": True}
    if not (folder / "config.json").exists():
        raise ZippkitError(f"{folder}: no model is there; expected a Hugging Face folder with config.json")
    model = str(read_json(folder / "config.json").get("model_type"))
    for kind in registry.kinds(registry.TOWERS):
        try:
            if registry.config_class(registry.TOWERS, kind.name).runs(model):
                return {"kind": kind.name, "config": {"path": path}, "freeze": True}
        except (registry.UnknownKindError, AttributeError):
            continue
    raise ZippkitError(f"{folder}: a {model!r} model, which no kind of tower runs (`zippkit towers` lists them)")


def _links(spec: CompositionSpec) -> list[dict[str, Any]]:
    """Gated cross-attention from each tower into each that predicts: ten sites in thirty layers, as in the paper."""
    settings = {name: tower.settings for name, tower in spec.towers.items()}
    return [
        {"kind": "gated_cross_attention", "from": source, "into": target, "every": 3 if into.n_layers > 6 else 1}
        for target, into in settings.items()
        for source in settings
        if source != target and into.predicts
    ]


def _spec_lines(spec: Mapping[str, Any]) -> Iterator[str]:
    yield "# Every key is described in docs/spec.md; `zippkit check` tells what is wrong, `zippkit diagram` draws it."
    yield f"name: {_flow(spec['name'])}"
    yield "towers:"
    for i, (name, section) in enumerate(spec["towers"].items()):
        given = {key: value for key, value in section.items() if value != {}}
        yield f"  {name}:"
        yield from (f"    {key}: {_flow(value)}" for key, value in given.items())
        if i == 0:
            yield from _hints(TowerSpec, given, "    # ")
    yield "links:" if spec["links"] else "links: []"
    yield from (f"  - {_flow(link)}" for link in spec["links"])
    if spec["links"]:
        yield "  # A link takes these too:"
        yield from _hints(LinkSpec, spec["links"][0], "  #   ")


def _recipe_lines(spec: CompositionSpec, out: Path, data: Path | None) -> Iterator[str]:
    yield "# `zippkit train` runs this, or goes on with it; --help tells how to change a key for one run."
    yield f"name: {_flow(spec.name)}"
    yield "spec: spec.yaml"
    where = os.path.relpath(data.resolve(), out.resolve()) if data is not None else "data/NAME"
    yield f"data: {where}{'' if data is not None else '  # a folder that `zippkit prepare` writes'}"
    fresh = [n for n, tower in spec.towers.items() if not tower.has_weights and tower.settings.predicts]
    if fresh:
        yield "pretrain:  # towers without weights learn their own modality first"
        yield from (f"  {name}: {{steps: 500, warmup: 50, schedule: cosine}}" for name in fresh)
    yield "train:"
    tasks = [str(task) for task in linked_tasks(spec)] or fresh
    yield from _section(Phase, {"tasks": tasks, "steps": 1000, "warmup": 50, "schedule": "cosine"})
    yield "evaluate:"
    yield from _section(Evaluation, {"split": "test"})


def _section(model: type[BaseModel], given: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a section: the keys that are given, then those that are worth knowing of."""
    yield from (f"  {key}: {_flow(value)}" for key, value in given.items())
    yield from _hints(model, given, "  # ")


def _hints(model: type[BaseModel], given: Mapping[str, Any], indent: str) -> Iterator[str]:
    described = {field.alias or name: field.description or "" for name, field in model.model_fields.items()}
    for key, example in HINTS[model].items():
        if key not in given:
            line = f"{indent}{key}: {example}  # "
            yield line + shorten(
                re.split(r"[.;] ", described[key])[0].rstrip("."), WIDTH - len(line), placeholder=" ..."
            )


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
