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
        list[str] | None,
        typer.Argument(
            help="Options of the reader, of units, of a modality: max_digits=5 units.stride=2 imu.n_units=64"
        ),
    ] = None,
    text: Annotated[str, typer.Option(help="bytes, words, or a tokenizer.json.")] = "bytes",
    units: Annotated[
        Path | None,
        typer.Option(help="A trained unit tokenizer, or a dataset that has one; trained on the corpus if left out."),
    ] = None,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]KIND",
            help="Of sound: mel_units, ssl_units, codec, ...; of a modality: imu=frame_units, text=words, imu=none.",
        ),
    ] = None,
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
    partial: Annotated[
        bool, typer.Option("--partial", help="Keep records that lack a modality which others have.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and count them.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many records per split.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset.")] = False,
) -> None:
    """Turn a corpus into a dataset folder: sound as units or waveforms, pictures as grey levels, text, ids, frames.

    Example: zippkit prepare fsdd path/to/recordings -o data/fsdd --text words max_digits=5 units.sample_rate=8000
    """
    from zippkit.cli.prepare_dataset import run_prepare

    flags = {
        "text": text,
        "waveform": waveform,
        "tokenizer": tokenizer,
        "vocoder": vocoder,
        "resample": resample,
        "partial": partial,
        "skip_bad": skip_bad,
        "limit": limit,
        "seed": seed,
        "overwrite": overwrite,
    }
    print(run_prepare(corpus, root, out, options or [], units, flags))
