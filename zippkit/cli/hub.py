"""Commands that take exported models to the Hugging Face hub and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    run_or_folder: Annotated[Path, typer.Argument(help="Exported folder; or a run or checkpoint, which is exported.")],
    repo: Annotated[str, typer.Argument(help="Name on the hub, as organisation/model.")],
    private: Annotated[bool, typer.Option("--private", help="Where the repository is new, make it private.")] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
) -> None:
    """Upload an exported model to the Hugging Face hub.

    Example: zippkit push runs/demo me/digits
    """
    from zippkit.training.hf_export.hub import push as upload

    print(upload(run_or_folder, repo, private=private, message=message))


def pull(
    repo: Annotated[str, typer.Argument(help="Name on the hub, as organisation/model.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist, or be empty.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; the newest if left out.")] = None,
) -> None:
    """Download an exported model from the Hugging Face hub.

    Example: zippkit pull me/digits digits
    """
    from zippkit.training.hf_export.hub import pull as download

    print(download(repo, folder, revision=revision))
