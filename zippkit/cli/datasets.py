"""The command that makes a dataset of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prepare(
    corpus: Annotated[
        str,
        typer.Argument(help="Kind of the corpus: librispeech, pairs, table or another that `zippkit readers` lists."),
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
    from zippkit.cli.prepare_dataset import run_prepare

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
