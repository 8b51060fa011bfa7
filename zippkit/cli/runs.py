"""Commands on runs: train, experiment, score, report, generate and export."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from zippkit.cli.options import AsJson, Overrides, Run
from zippkit.errors import ZippkitError
from zippkit.spec.sampling import MOST_TOKENS


def train(
    file: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; runs/<name> if left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe, or go on with it where it stopped; its numbers of steps and its settings may have changed.

    Example: zippkit train recipes/demo/recipe.yaml --out runs/demo train.steps=200
    """
    from zippkit.loading import load_recipe
    from zippkit.system.ranks import ranks_of_environment
    from zippkit.training.trainer import train as run_recipe

    loaded = load_recipe(file, overrides or ())
    folder = out or Path("runs") / loaded.name
    run_recipe(loaded, folder)
    if not ranks_of_environment().leads:
        return
    if as_json:
        from zippkit.training.run_state import run_state

        print(json.dumps(run_state(folder), indent=2))
        return
    print(folder)


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


def evaluate(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Other settings of `evaluate`: task='speech -> text' split=dev limit=100 beams=4."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset; the recipe's if left out.")] = None,
    data: Annotated[Path | None, typer.Option(help="Another dataset folder, of the same tokenizers.")] = None,
    n_examples: Annotated[int, typer.Option("--examples", min=0, help="Answers to print.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Score a run: word error rate by task, and what each tower kept of its own modality.

    Example: zippkit eval runs/demo split=dev limit=100 beams=4
    """
    from zippkit.evaluation.evaluate import evaluate as score
    from zippkit.system.ranks import ranks_of_environment

    if not ranks_of_environment().leads:
        return
    result = score(run, split, data, overrides or ())
    if as_json:
        print(json.dumps(asdict(result), indent=2))
        return
    from zippkit.report.terminal_tables import answers_table, show, summary_tables

    show(*(answers_table(task, n_examples) for task in result.tasks), *summary_tables(run, result))


def report(run: Run, as_json: AsJson = False) -> None:
    """Prove the certificates on a finished run, print its results, and write report.html into it.

    Example: zippkit report runs/demo
    """
    from zippkit.report.run_page import write_report
    from zippkit.report.terminal_tables import show, summary_tables
    from zippkit.training.run_folder import RunFolder

    page = write_report(run)
    if as_json:
        from zippkit.training.run_state import run_state

        names = ("evaluation.json", "certificates.json", "seconds.json")
        files = {name.removesuffix(".json"): RunFolder(run).read_json(name) for name in names}
        print(json.dumps({"page": str(page), **run_state(run), **files}, indent=2))
        return
    show(*summary_tables(run))
    print(page)


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
    unimodal: Annotated[
        bool, typer.Option("--unimodal", help="A tower continues its own modality, around its input projection.")
    ] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the steps: tens of seconds at first, for long answers.")
    ] = False,
) -> None:
    """Continue sound or text in other modalities.

    Example: zippkit generate runs/demo --audio recipes/demo/audio/two_five_zero.wav
    """
    from zippkit.evaluation.conversation import Given, answer, read_prompt, read_sampling

    given = [Given(each) for each in (audio, text) if each is not None]
    if len(given) + (prompt is not None) != 1:
        raise ZippkitError("generate: expected one of --audio, --text and --prompt")
    segments = given if prompt is None else read_prompt(prompt)
    sampling, ways = read_sampling(choosing or []), {"multimodal": not unimodal, "compile": compile}
    for line in answer(run, segments, to, out, max_tokens, sampling, seed, scorer, **ways):
        print(line)


def export(
    run: Annotated[Path, typer.Argument(help="Run folder or checkpoint.")],
    tower: Annotated[str | None, typer.Option(help="The tower to take out.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; a spec's `weights` can name it.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add the tower's adapters (LoRA) into its weights.")] = False,
    hf: Annotated[
        Path | None, typer.Option(help="Folder to write the whole model into, for transformers without zippkit.")
    ] = None,
    reference_frozen: Annotated[
        bool,
        typer.Option("--reference-frozen", help="With --hf: name frozen towers by hub id or place, not copy them."),
    ] = False,
) -> None:
    """Take one tower out of a run, or write the whole model for transformers.

    A frozen tower that has a source is a copy of it, byte for byte. The folder of --hf is loaded by
    `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`, where zippkit is not installed.

    Example: zippkit export runs/demo --hf digits
    """
    if hf is not None:
        if tower is not None or out is not None or merge:
            raise ZippkitError("export: --hf writes the whole model; leave out --tower, --out and --merge")
        from zippkit.training.hf_export.writing import export_model

        print(*export_model(run, hf, reference_frozen=reference_frozen), hf, sep="\n")
        return
    if tower is None or out is None:
        raise ZippkitError("export: expected --tower NAME and --out FOLDER, or --hf FOLDER")
    from zippkit.training.export import export_tower

    print(*export_tower(run, tower, out, merge=merge), out, sep="\n")
