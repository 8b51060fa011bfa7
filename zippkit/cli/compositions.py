"""Commands on a spec: check it, show its plan, draw it, count it, compare it, prove it, derive its recipe."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from zippkit.cli.options import AsJson, Overrides, SpecFile
from zippkit.errors import Problem, SpecError, ZippkitError


def check(
    file: Annotated[Path, typer.Argument(help="Spec, recipe or experiment (YAML).")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Find everything that is wrong with a spec, a recipe or an experiment, without torch.

    Example: zippkit check recipes/demo/spec.yaml
    """
    from zippkit.loading import cautions, load_any
    from zippkit.spec.inheritance import read_document

    told: list[Problem] = []
    try:
        if "cells" in read_document(file).data:
            from zippkit.experiment.grid import check_experiment

            if overrides:
                raise ZippkitError(f"{file}: holds an experiment, whose overrides stand in its presets; leave them out")
            name = check_experiment(file)
        else:
            found = load_any(file, overrides or ())
            name, told = found.name, cautions(file, found)
    except SpecError as error:
        if not as_json:
            raise
        print(json.dumps({"ok": False, "problems": [asdict(problem) for problem in error.problems]}, indent=2))
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps({"ok": True, "problems": [], "warnings": [asdict(each) for each in told]}, indent=2))
        return
    for each in told:
        print(f"warning: {each}", file=sys.stderr)
    print(f"{file}: {name} is sound")


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write spec.yaml and recipe.yaml into.")],
    towers: Annotated[
        list[str] | None, typer.Argument(help="name=KIND or name=FOLDER for each tower, name.key=value for its config.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Dataset, whose vocabularies the towers are given.")] = None,
) -> None:
    """Write a commented spec and recipe for the towers that you name, to start from.

    Example: zippkit init mine text=runs/smollm2 speech=decoder speech.dim=512
    """
    from zippkit.cli.new_project import new_project

    for file in new_project(folder, towers or [], data):
        print(file)


def plan(
    file: SpecFile,
    overrides: Overrides = None,
    task: Annotated[str | None, typer.Option(help="Prune to a task, such as 'speech -> text'.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the operations of a composition in the order in which they run.

    Example: zippkit plan recipes/demo/spec.yaml --task "speech -> text"
    """
    from zippkit.loading import recipe_at, spec_at
    from zippkit.plan.graph import build_graph
    from zippkit.plan.phases import told_phases, wanted_by
    from zippkit.plan.plan import build_plan
    from zippkit.spec.phase import Phase
    from zippkit.spec.task import Task
    from zippkit.spec.task_line import WeightedTask

    graph = build_graph(spec := spec_at(file, overrides or ()))
    whole = build_plan(graph)
    if task is not None:
        Task.parse(task).check(graph.modalities)
        whole = whole.prune(wanted_by(spec, WeightedTask(task=task)))
    recipe = recipe_at(file, overrides or ())
    staged = recipe is not None and not isinstance(recipe.train, Phase)
    if as_json:
        print(json.dumps([asdict(op) for op in whole.ops], indent=2))
        return
    print(whole)
    if recipe is not None and staged:
        print("", *told_phases(recipe), sep="\n")


def diagram(
    file: SpecFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="A .svg or .mmd (Mermaid) file.")],
    overrides: Overrides = None,
) -> None:
    """Draw towers, sites, projections and freezing.

    Example: zippkit diagram recipes/demo/spec.yaml -o architecture.svg
    """
    from zippkit.loading import spec_at
    from zippkit.plan.diagram.diagram import write_diagram
    from zippkit.plan.graph import build_graph

    spec = spec_at(file, overrides or ())
    write_diagram(spec, build_graph(spec), out)
    print(out)


def sizes(
    file: Annotated[Path, typer.Argument(help="Spec, recipe, checkpoint or run.")],
    overrides: Overrides = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Such as 'speech -> text'; every linked direction if left out.")
    ] = None,
    source_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of each given segment; 256, or what fits, if left out.")
    ] = None,
    target_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of each predicted segment; 64, or what fits, if left out.")
    ] = None,
    ranks: Annotated[
        list[int] | None, typer.Option(min=1, help="Predict a training step on so many accelerators; may be repeated.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--with", help="Of a prediction: rows=16, shard=all, hardware=tpu-v5p, efficiency=0.5, ..."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count parameters, bytes, operations for each token and what generation keeps, without any weights.

    Example: zippkit sizes recipes/demo/spec.yaml --task "speech -> text"
    """
    from zippkit.loading import recipe_at, spec_at
    from zippkit.report.sizes import sizes as measure

    spec = spec_at(file, overrides or ())
    if ranks or settings:
        from zippkit.report.prediction import predict
        from zippkit.report.terminal_tables import rank_tables, show

        costs = predict(
            spec, recipe_at(file, overrides or ()), ranks or [1], settings or (), task, source_tokens, target_tokens
        )
        if as_json:
            print(json.dumps([cost.as_json() for cost in costs], indent=2))
        else:
            show(*rank_tables(costs))
        return
    found = measure(spec, task, source_tokens, target_tokens)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
        return
    from zippkit.report.terminal_tables import binary, show, size_tables

    show(*size_tables(found))
    print(f"Weights, gradients and Adam's moments: {binary(found.training_bytes)}")


def diff(
    old: Annotated[Path, typer.Argument(help="Spec, recipe, checkpoint or run.")],
    new: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Say what differs between two compositions, down to parameters, without weights; exit code 1 if anything does.

    Example: zippkit diff recipes/compositions/zipper.yaml recipes/compositions/lora_zipper.yaml
    """
    from zippkit.loading import spec_at
    from zippkit.report.model_diff import diff as compare

    # What was saved holds its own weights, wherever they came from.
    found = compare(spec_at(old), spec_at(new), weights=not (old.is_dir() or new.is_dir()))
    print(json.dumps(found.as_json(), indent=2) if as_json else found)
    if not found.same:
        raise typer.Exit(1)


def verify(
    file: SpecFile,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Also prove that so many processes learn what one does (C6).")
    ] = None,
    exported: Annotated[
        Path | None, typer.Option("--export", help="The run's exported model, of which C10 is proven too.")
    ] = None,
    device_safe: Annotated[
        bool,
        typer.Option("--device-safe", help="Prove instead that devices which compile wait for nothing, on the CPU."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prove the certificates on a spec or on a finished run; exit code 1 if one fails.

    Example: zippkit verify recipes/demo/spec.yaml --ranks 2
    """
    from zippkit.composition import compile, load
    from zippkit.evaluation.certificates import verify as prove
    from zippkit.evaluation.certificates.device_safe import device_safe as prove_safe
    from zippkit.loading import spec_at
    from zippkit.system.ranks import ranks_of_environment

    if not ranks_of_environment().leads:
        return
    if exported is not None and not (exported / "config.json").is_file():
        raise ZippkitError(f"{exported}: no exported model is there; write it, zippkit export {file} --hf {exported}")
    zipped = load(file) if file.is_dir() else compile(spec_at(file, overrides or ()))
    report = prove_safe(zipped) if device_safe else prove(zipped, ranks=ranks, exported=exported)
    print(json.dumps(report.as_json(), indent=2) if as_json else report)
    if not report.passed:
        raise typer.Exit(1)


def recipe(file: SpecFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the training recipe that follows from a spec; of a recipe with stages, what follows for each of them.

    Example: zippkit recipe recipes/demo/spec.yaml
    """
    import yaml

    from zippkit.loading import recipe_at, spec_at
    from zippkit.plan.phases import filled_in
    from zippkit.spec.derived_recipe import derived_recipe, dump
    from zippkit.spec.phase import Phase

    given = recipe_at(file, overrides or ())
    staged = given is not None and not isinstance(given.train, Phase)
    found = dump(filled_in(given) if given and staged else derived_recipe(spec_at(file, overrides or ())))
    print(json.dumps(found, indent=2) + "\n" if as_json else yaml.safe_dump(found, sort_keys=False), end="")
