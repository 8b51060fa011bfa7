"""The command line: a thin layer over the library, with exit code 2 and one clear message for a user's mistake."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from zippkit.errors import Problem, SpecError, ZippkitError
from zippkit.spec.sampling import MOST_TOKENS
from zippkit.system.files import FULL

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compose independently pre-trained towers into one multimodal model.",
)

SpecFile = Annotated[Path, typer.Argument(help="Spec, recipe, checkpoint or run.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value, as in towers.text.freeze=true")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Run = Annotated[Path, typer.Argument(help="Run folder, as `zippkit train` writes it.")]


def main() -> None:
    """Entry point of the ``zippkit`` command."""
    # Threads that wait spinning slow a shared machine five times; sleeping ones cost a tenth on an idle one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        try:
            app()
        finally:
            # Here, where a full disk can still be told.
            sys.stdout.flush()
    except ZippkitError as error:
        print(error, file=sys.stderr)
        interrupted = type(error).__name__ == "InterruptedRunError"
        raise SystemExit(130 if interrupted else 2) from None
    except BrokenPipeError:
        # Whoever read the output has seen enough, as in `zippkit plan spec.yaml | head`.
        _drop_output()
        raise SystemExit(0) from None
    except OSError as error:
        # A path that cannot be read or written is the user's to mend; anything else is a bug and keeps its traceback.
        if error.filename is None and error.errno not in FULL:
            raise
        print(f"{error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        _drop_output()
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        told = _about_memory(error)
        if not told:
            raise
        print(f"too little memory: {told}; fewer or shorter rows, or a smaller model, need less", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _drop_output() -> None:
    """Let nothing that is still to be printed fail when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _about_memory(error: MemoryError | RuntimeError) -> str:
    """What an allocation that failed says of itself; empty for any other error. torch has no class for it on a CPU."""
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return said or "an allocation failed"
    _, found, rest = said.partition("DefaultCPUAllocator: ")
    return rest if found else ""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="Spec, recipe or experiment (YAML).")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Find everything that is wrong with a spec, a recipe or an experiment, without torch.

    Example: zippkit check recipes/demo/spec.yaml
    """
    from zippkit.loading import cautions, load_any
    from zippkit.spec.yaml_document import read_document

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


@app.command()
def plan(
    file: SpecFile,
    overrides: Overrides = None,
    task: Annotated[str | None, typer.Option(help="Prune to a task, such as 'speech -> text'.")] = None,
) -> None:
    """Print the operations of a composition in the order in which they run.

    Example: zippkit plan recipes/demo/spec.yaml --task "speech -> text"
    """
    from zippkit.loading import spec_at
    from zippkit.plan.graph import build_graph
    from zippkit.plan.plan import Wanted, build_plan
    from zippkit.spec.task import Task

    graph = build_graph(spec_at(file, overrides or ()))
    whole = build_plan(graph)
    if task is not None:
        wanted, host = Task.parse(task).check(graph.modalities), {m: at.tower for m, at in graph.modalities.items()}
        sees = {(host[later], host[earlier]) for later, earlier in wanted.sees()}
        whole = whole.prune(Wanted(heads={host[name] for name in wanted.targets}, sees=sees))
    print(whole)


@app.command()
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


@app.command()
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
    as_json: AsJson = False,
) -> None:
    """Count parameters, bytes, operations for each token and what generation keeps, without any weights.

    Example: zippkit sizes recipes/demo/spec.yaml --task "speech -> text"
    """
    from zippkit.loading import spec_at
    from zippkit.report.sizes import sizes as measure

    found = measure(spec_at(file, overrides or ()), task, source_tokens, target_tokens)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
        return
    from zippkit.report.terminal_tables import binary, show, size_tables

    show(*size_tables(found))
    print(f"Weights, gradients and Adam's moments: {binary(found.training_bytes)}")


@app.command()
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


@app.command()
def verify(file: SpecFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Prove the certificates on a spec or on a finished run; exit code 1 if one fails.

    Example: zippkit verify recipes/demo/spec.yaml
    """
    from zippkit.composition import compile, load
    from zippkit.evaluation.certificates import verify as prove
    from zippkit.loading import spec_at

    report = prove(load(file) if file.is_dir() else compile(spec_at(file, overrides or ())))
    print(json.dumps(report.as_json(), indent=2) if as_json else report)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def recipe(file: SpecFile, overrides: Overrides = None) -> None:
    """Print the training recipe that follows from a spec.

    Example: zippkit recipe recipes/demo/spec.yaml
    """
    import yaml

    from zippkit.loading import spec_at
    from zippkit.spec.derived_recipe import derived_recipe, dump

    print(yaml.safe_dump(dump(derived_recipe(spec_at(file, overrides or ()))), sort_keys=False), end="")


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; runs/<name> if left out.")] = None,
) -> None:
    """Run a recipe, or go on with it where it stopped.

    Example: zippkit train recipes/demo/recipe.yaml --out runs/demo train.steps=200
    """
    from zippkit.loading import load_recipe
    from zippkit.training.trainer import train as run_recipe

    loaded = load_recipe(file, overrides or ())
    folder = out or Path("runs") / loaded.name
    run_recipe(loaded, folder)
    print(folder)


@app.command()
def experiment(
    folder: Annotated[Path, typer.Argument(help="Folder with one YAML file for each experiment.")],
    only: Annotated[str | None, typer.Option(help="Experiments to run, as in asr,tts; all if left out.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The same as --preset smoke.")] = False,
    preset: Annotated[str, typer.Option(help="Which of the experiments' presets.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Results; runs/<folder>-<preset> if left out.")
    ] = None,
) -> None:
    """Run experiments, or go on with them where they stopped, and judge their claims; exit code 1 if a run failed.

    Example: zippkit experiment recipes/paper --smoke
    """
    from zippkit.experiment.cli import run_experiments

    chosen = "smoke" if smoke else preset
    target = out or Path("runs") / f"{folder.resolve().name}-{chosen}"
    page, n_failed = run_experiments(folder, only.split(",") if only else None, chosen, target)
    print(page)
    if n_failed:
        print(f"{n_failed} runs failed; start again to try them again", file=sys.stderr)
        raise typer.Exit(1)


@app.command(name="eval")
def evaluate(
    run: Run,
    split: Annotated[str | None, typer.Option(help="Split of the dataset; the recipe's if left out.")] = None,
    data: Annotated[Path | None, typer.Option(help="Another dataset folder, of the same tokenizers.")] = None,
    n_examples: Annotated[int, typer.Option("--examples", min=0, help="Answers to print.")] = 10,
) -> None:
    """Score a run: word error rate by task, and what each tower kept of its own modality.

    Example: zippkit eval runs/demo --split dev
    """
    from zippkit.evaluation.evaluate import evaluate as score
    from zippkit.report.terminal_tables import answers_table, show, summary_tables

    result = score(run, split, data)
    show(*(answers_table(task, n_examples) for task in result.tasks), *summary_tables(run))


@app.command()
def report(run: Run) -> None:
    """Prove the certificates on a finished run, print its results, and write report.html into it.

    Example: zippkit report runs/demo
    """
    from zippkit.report.run_page import write_report
    from zippkit.report.terminal_tables import show, summary_tables

    page = write_report(run)
    show(*summary_tables(run))
    print(page)


@app.command()
def generate(
    run: Run,
    choosing: Annotated[
        list[str] | None, typer.Argument(help="How tokens are chosen: temperature=0.8 top_p=0.9, or beams=4.")
    ] = None,
    audio: Annotated[Path | None, typer.Option(help="A .wav or .flac file to listen to.")] = None,
    text: Annotated[str | None, typer.Option(help="Text to start from.")] = None,
    prompt: Annotated[
        Path | None, typer.Option(help='JSON file of segments, as [{"speech": "in.wav"}, {"text": "two"}].')
    ] = None,
    to: Annotated[
        list[str] | None, typer.Option(help="Towers to generate with, in order; the linked one if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write sound that is generated.")] = None,
    max_tokens: Annotated[int, typer.Option(min=0, max=MOST_TOKENS, help="Longest segment, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    scorer: Annotated[
        str | None, typer.Option(help="Print what this recogniser hears in generated sound, as moonshine.")
    ] = None,
) -> None:
    """Continue sound or text in other modalities.

    Example: zippkit generate runs/demo --audio recipes/demo/audio/two_five_zero.wav
    """
    from zippkit.evaluation.conversation import Given, answer, read_prompt, read_sampling

    given = [Given(each) for each in (audio, text) if each is not None]
    if len(given) + (prompt is not None) != 1:
        raise ZippkitError("generate: expected one of --audio, --text and --prompt")
    segments = given if prompt is None else read_prompt(prompt)
    for line in answer(run, segments, to, out, max_tokens, read_sampling(choosing or []), seed, scorer):
        print(line)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder or checkpoint.")],
    tower: Annotated[str, typer.Option(help="The tower to take out.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; a spec's `weights` can name it.")],
    merge: Annotated[bool, typer.Option("--merge", help="Add the tower's adapters (LoRA) into its weights.")] = False,
) -> None:
    """Take one tower out of a run; a frozen one that has a source is a copy of it, byte for byte.

    Example: zippkit export runs/demo --tower text -o towers/text
    """
    from zippkit.training.export import export_tower

    print(*export_tower(run, tower, out, merge=merge), out, sep="\n")


@app.command()
def prepare(
    corpus: Annotated[
        str, typer.Argument(help="librispeech, libritts, pairs (.wav/.flac + .txt), fsdd, or handwritten (images).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Dataset folder to write.")],
    root: Annotated[Path | None, typer.Argument(help="Folder of the corpus; handwritten has none.")] = None,
    options: Annotated[
        list[str] | None, typer.Argument(help="The reader's options and the units', as in max_digits=5 units.stride=2")
    ] = None,
    text: Annotated[str, typer.Option(help="bytes, words, or a tokenizer.json.")] = "bytes",
    units: Annotated[
        Path | None, typer.Option(help="A trained unit tokenizer; trained on the corpus if left out.")
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(metavar="KIND", help="mel_units, ssl_units, codec, or another kind that is installed.")
    ] = "mel_units",
    vocoder: Annotated[
        bool, typer.Option("--vocoder", help="Train a network from units to sound, too; ssl_units need it.")
    ] = False,
    waveform: Annotated[
        int | None,
        typer.Option(min=1, metavar="HZ", help="Write sound as waveforms at this sample rate, instead of as units."),
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring other sample rates to the units' or the waveforms'.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad recordings out and count them.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many recordings per split.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset.")] = False,
) -> None:
    """Turn a corpus into a dataset folder: speech as units or waveforms, images as grey levels, with transcripts.

    Example: zippkit prepare fsdd path/to/recordings -o data/fsdd --text words max_digits=5 units.sample_rate=8000
    """
    from zippkit.data.prepare_command import run_prepare

    flags = {
        "text": text,
        "waveform": waveform,
        "tokenizer": tokenizer,
        "vocoder": vocoder,
        "resample": resample,
        "skip_bad": skip_bad,
        "limit": limit,
        "seed": seed,
        "overwrite": overwrite,
    }
    print(run_prepare(corpus, root, out, options or [], units, flags))


@app.command()
def towers(as_json: AsJson = False) -> None:
    """List the registered kinds of tower and the package that each comes from.

    Example: zippkit towers --json
    """
    _list_kinds("zippkit.towers", as_json)


@app.command()
def links(as_json: AsJson = False) -> None:
    """List the registered kinds of link and the package that each comes from.

    Example: zippkit links --json
    """
    _list_kinds("zippkit.links", as_json)


@app.command()
def scorers(as_json: AsJson = False) -> None:
    """List the registered kinds of scorer (judges of generated speech) and the package that each comes from.

    Example: zippkit scorers --json
    """
    _list_kinds("zippkit.scorers", as_json)


def _list_kinds(group: Literal["zippkit.towers", "zippkit.links", "zippkit.scorers"], as_json: bool) -> None:
    from zippkit.spec.registry import kinds

    found = kinds(group)
    if as_json:
        print(json.dumps([{"kind": k.name, "package": k.package, "class": k.value} for k in found], indent=2))
    else:
        for kind in found:
            print(f"{kind.name:<24} {kind.package:<16} {kind.value}")


@app.command()
def schema(
    what: Annotated[Literal["spec", "recipe", "experiment"], typer.Argument(help="Which YAML.")] = "spec",
) -> None:
    """Print the JSON Schema of a spec, a recipe or an experiment, for editors.

    Example: zippkit schema spec > zippkit-spec.json
    """
    from zippkit.spec.composition_spec import CompositionSpec
    from zippkit.spec.recipe import Recipe
    from zippkit.spec.schema import json_schema

    model: Any = CompositionSpec if what == "spec" else Recipe
    if what == "experiment":
        from zippkit.experiment.format import Experiment

        model = Experiment
    print(json.dumps(json_schema(model), indent=2))


if __name__ == "__main__":
    main()
