"""What comes with zippkit: recipes that can be listed and copied, every file of them in the wheel, a tour that runs."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from zippkit.errors import ZippkitError
from zippkit.system import shipped
from zippkit.system.shipped import copy_recipes, recipes_folder, shipped_recipes

ROOT = Path(__file__).parents[2]


def tracked(folder: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        pytest.skip("no git, or no checkout")
    return set(done.stdout.split())


def test_every_file_of_the_recipes_is_in_the_wheel() -> None:
    given = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["data-files"]
    taken = {
        file.relative_to(ROOT).as_posix() for globs in given.values() for glob in globs for file in ROOT.glob(glob)
    }
    assert tracked("recipes") <= taken
    assert all(place == f"share/zippkit/{Path(glob).parent}" for place, (glob,) in given.items())


def test_each_recipe_says_what_it_is_for() -> None:
    found = {each.name: each.about for each in shipped_recipes()}
    assert {"demo", "compositions", "paper", "listen"} <= found.keys()
    assert all(found.values()) and len(set(found.values())) == len(found)


def test_a_recipe_is_copied_whole_and_never_over_something(tmp_path: Path) -> None:
    copied = copy_recipes("demo", tmp_path / "mine")
    names = {file.relative_to(copied).as_posix() for file in copied.rglob("*") if file.is_file()}
    assert names == {name.removeprefix("recipes/demo/") for name in tracked("recipes/demo")}
    with pytest.raises(ZippkitError, match="exists already"):
        copy_recipes("demo", copied)
    with pytest.raises(ZippkitError, match=r"'dem' is not among .*demo"):
        copy_recipes("dem", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_installation_that_lost_its_recipes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipes_folder() == ROOT / "recipes"
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "a" / "b" / "shipped.py"))
    monkeypatch.setattr(shipped.metadata, "files", lambda _: [])
    with pytest.raises(ZippkitError, match="has no recipes"):
        recipes_folder()


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs are not kept: they would grow old"
            exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    assert "holds" in said and "parameters" in said
