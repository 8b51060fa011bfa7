"""What is generated under docs/ is up to date, and the generator notices when it is not."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from helpers.compositions import SPEC
from zippkit.plan.diagram.diagram import drawn_sites
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.link_spec import LinkSpec, Site
from zippkit.spec.part_sections import InputProjection, Projection
from zippkit.spec.tower_spec import TowerSpec
from zippkit.spec.validation import field_names

ROOT = Path(__file__).parents[1]


def _load(name: str) -> ModuleType:
    """A script of docs/, which belongs to no package."""
    spec = importlib.util.spec_from_file_location(f"{name}_docs", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _load("generate")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one spec of its own and one inside a recipe, whose documents are written."""
    (tmp_path / "recipes" / "demo").mkdir(parents=True)
    (tmp_path / "recipes" / "tiny.yaml").write_text(SPEC)
    recipe = {"name": "run", "data": "data", "spec": yaml.safe_load(SPEC)}
    (tmp_path / "recipes" / "demo" / "train.yml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (tmp_path / "recipes" / "demo" / "elsewhere.yaml").write_text("name: run\nspec: ../tiny.yaml\n")
    assert generate.main(["--root", str(tmp_path)]) == 0
    return tmp_path


def check(project: Path) -> int:
    status: int = generate.main(["--check", "--root", str(project)])
    return status


def test_the_documents_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_every_spec_is_drawn_wherever_it_stands(project: Path) -> None:
    names = {path.name for path in (project / "docs" / "diagrams").iterdir()}
    assert names == {f"{name}.{suffix}" for name in ("example", "tiny", "demo-train") for suffix in ("svg", "mmd")}
    assert (project / "docs" / "spec.md").exists()
    for path in (project / "docs" / "diagrams").glob("tiny.*"):
        assert len(drawn_sites(path.read_text(encoding="utf-8"))) == 4
    assert check(project) == 0


def test_a_project_without_recipes_has_its_reference(tmp_path: Path) -> None:
    assert generate.main(["--root", str(tmp_path)]) == 0
    assert {path.name for path in (tmp_path / "docs" / "diagrams").iterdir()} == {"example.svg", "example.mmd"}


@pytest.mark.parametrize("file", ["docs/spec.md", "docs/diagrams/tiny.svg", "docs/diagrams/demo-train.mmd"])
@pytest.mark.parametrize("change", ["one byte", "gone"])
def test_a_stale_file_is_named(project: Path, capsys: pytest.CaptureFixture[str], file: str, change: str) -> None:
    path = project / file
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"\n")
    assert check(project) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [file]
    assert generate.main(["--root", str(project)]) == 0
    assert check(project) == 0


def test_a_changed_spec_makes_its_diagrams_stale(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "recipes" / "tiny.yaml").write_text(SPEC.replace("every: 2", "every: 1"))
    assert check(project) == 1
    named = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert named == ["docs/diagrams/tiny.mmd", "docs/diagrams/tiny.svg"]


def test_diagrams_of_a_spec_that_is_gone_are_removed(project: Path) -> None:
    (project / "recipes" / "tiny.yaml").unlink()
    assert check(project) == 1
    generate.main(["--root", str(project)])
    assert check(project) == 0
    assert not (project / "docs" / "diagrams" / "tiny.svg").exists()


def test_a_tower_that_is_not_trained_yet_is_drawn_from_its_config(project: Path) -> None:
    before = (project / "docs" / "diagrams" / "tiny.svg").read_bytes()
    (project / "recipes" / "tiny.yaml").write_text(SPEC.replace("freeze: true", "freeze: true\n    weights: runs/text"))
    assert generate.main(["--root", str(project)]) == 0
    assert (project / "docs" / "diagrams" / "tiny.svg").read_bytes() == before


def test_a_wrong_spec_stops_the_generator_and_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "recipes" / "tiny.yaml").write_text(SPEC.replace("every: 2", "evry: 2"))
    assert check(project) == 2
    assert re.search(r"tiny\.yaml:\d+: .*unknown key 'evry'; did you mean 'every'\?", capsys.readouterr().err)


def test_two_specs_of_one_name_are_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "recipes" / "demo-train.yaml").write_text(SPEC)
    assert check(project) == 2
    assert "docs/diagrams/demo-train.svg" in capsys.readouterr().err


def test_the_example_is_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(generate, "EXAMPLE", generate.EXAMPLE.replace("n_heads: 12", "n_heads: 7"))
    assert generate.main(["--check"]) == 2
    assert "the example in docs/generate.py" in capsys.readouterr().err


def _sections() -> dict[str, str]:
    """The reference's sections by title."""
    parts = re.split(r"^## (.*)$", (ROOT / "docs" / "spec.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("The file", CompositionSpec),
        ("`towers.<name>`", TowerSpec),
        ("`towers.<name>.input_projection`", InputProjection),
        ("`links[]`", LinkSpec),
        ("`links[].projection`", Projection),
        ("`links[].sites[]`", Site),
    ],
)
def test_the_reference_tells_every_key(title: str, model: Any) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+) \|$", _sections()[title], flags=re.MULTILINE)
    assert [key for key, *_ in rows] == field_names(model)
    assert all(cell.strip() for row in rows for cell in row)


def test_links_inside_the_reference_lead_somewhere() -> None:
    text = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in _sections()}
    used = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert used and used <= anchors
    assert all((ROOT / "docs" / path).exists() for path in re.findall(r"\]\((diagrams/[^)]*)\)", text))


def test_the_tree_the_picture_and_the_index_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    house = _load("house")
    assert house.main(["--check"]) == 0, capsys.readouterr().out


def test_a_file_that_the_tree_does_not_show_is_noticed(tmp_path: Path) -> None:
    house = _load("house")
    for name in ("zippkit", "towers", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.svg", "*.png"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    assert house.main(["--root", str(tmp_path)]) == 0
    assert house.main(["--check", "--root", str(tmp_path)]) == 0
    (tmp_path / "zippkit" / "plan" / "another.py").write_text('"""Another."""\n')
    assert house.main(["--check", "--root", str(tmp_path)]) == 1


def test_every_test_that_the_map_of_rules_names_exists() -> None:
    named = set(re.findall(r"`(tests/[^`]+\.py)`", (ROOT / "docs" / "tests.md").read_text()))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
