"""Commands on what comes with zippkit: its recipes, and the demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from zippkit.cli.options import AsJson
from zippkit.errors import ZippkitError


def recipes(
    action: Annotated[Literal["ls", "cp"], typer.Argument(help="List them, or copy one.")] = "ls",
    name: Annotated[str | None, typer.Argument(help="Which to copy.")] = None,
    to: Annotated[Path | None, typer.Argument(help="Folder to write; the recipe's name if left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes that come with zippkit, or copy one to change it.

    Example: zippkit recipes cp demo my_demo
    """
    from zippkit.system.shipped import copy_recipes, shipped_recipes

    if action == "cp":
        if name is None:
            raise ZippkitError("recipes: cp needs a name; `zippkit recipes ls` lists them")
        print(copy_recipes(name, to or Path(name)))
        return
    found = shipped_recipes()
    if as_json:
        print(
            json.dumps([{"name": each.name, "about": each.about, "path": str(each.path)} for each in found], indent=2)
        )
        return
    for each in found:
        print(f"{each.name:<18} {each.about}")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder.")] = Path("runs/demo"),
    say: Annotated[str, typer.Option(help="Digits to speak at the end.")] = "five one seven zero",
) -> None:
    """Train the demo that comes with zippkit, score it, prove and report it, and have it speak; minutes on two cores.

    Example: zippkit demo --out runs/demo
    """
    from zippkit.cli import runs
    from zippkit.system.shipped import recipes_folder

    runs.train(recipes_folder() / "demo" / "recipe.yaml", out=out)
    runs.evaluate(out, n_examples=5)
    runs.report(out)
    runs.generate(out, text=say, out=out / "spoken.wav", scorer="moonshine")
