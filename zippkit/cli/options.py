"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecFile = Annotated[Path, typer.Argument(help="Spec, recipe, checkpoint or run.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value, as in towers.text.freeze=true")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Run = Annotated[Path, typer.Argument(help="Run folder, as `zippkit train` writes it.")]
