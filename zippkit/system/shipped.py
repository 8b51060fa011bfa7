"""The recipes that come with zippkit: beside the source, or where a wheel has put them."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from zippkit.errors import ZippkitError, did_you_mean
from zippkit.system.files import appearing

MARK = "recipes/demo/recipe.yaml"


class Shipped(NamedTuple):
    """A folder of recipes, and what it is for."""

    name: str
    about: str
    path: Path


def recipes_folder() -> Path:
    """The folder of all recipes.

    Raises:
        ZippkitError: this installation has none.
    """
    source = Path(__file__).parents[2] / "recipes"
    if (source.parent / MARK).is_file():
        return source
    for file in metadata.files("zippkit") or ():
        if file.as_posix().endswith(f"zippkit/{MARK}") and (place := Path(str(file.locate()))).is_file():
            return place.parents[1].resolve()
    raise ZippkitError(f"this installation of zippkit has no recipes; expected to find {MARK}; install zippkit anew")


def shipped_recipes() -> list[Shipped]:
    """Every folder of recipes, by name."""
    folders = (
        each for each in sorted(recipes_folder().iterdir()) if any(each.glob("*.yaml")) or any(each.glob("*.md"))
    )
    return [Shipped(folder.name, _about(folder), folder) for folder in folders]


def _about(folder: Path) -> str:
    """The title of its README, or the comment that its recipe begins with."""
    readme = folder / "README.md"
    file = (
        readme if readme.is_file() else min(folder.glob("*.yaml"), key=lambda each: (each.name != "recipe.yaml", each))
    )
    return file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").rstrip(".")


def copy_recipes(name: str, to: Path) -> Path:
    """Copy a folder of recipes, complete or not at all.

    Raises:
        ZippkitError: no such recipes, or ``to`` is there already.
    """
    found = {each.name: each.path for each in shipped_recipes()}
    if name not in found:
        raise ZippkitError(f"recipes: {name!r} is not among {', '.join(found)}{did_you_mean(name, found)}")
    if to.exists():
        raise ZippkitError(f"recipes: {to} exists already; choose another folder: zippkit recipes cp {name} FOLDER")
    with appearing(to) as new:
        shutil.copytree(found[name], new, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("__pycache__"))
    return to
