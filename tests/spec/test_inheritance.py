"""``base: other.yaml``: what a file takes over, what it replaces, and where a mistake in either is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.compositions import SPEC
from zippkit.errors import SpecError
from zippkit.loading import load_recipe, load_spec
from zippkit.spec.derived_recipe import dump

RECIPE = """\
name: first
spec: spec.yaml
data: corpus
train: {steps: 3, warmup: 1}
evaluate: {limit: 5}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner" / "corpus").mkdir(parents=True)
    (tmp_path / "inner" / "spec.yaml").write_text(SPEC)
    (tmp_path / "inner" / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def told(file: Path) -> list[str]:
    with pytest.raises(SpecError) as error:
        (load_recipe if "base: inner/recipe" in file.read_text() else load_spec)(file)
    return str(error.value).replace(f"{file.parent}/", "").split("\n")


def test_only_the_differences_are_written(folder: Path) -> None:
    mine = written(folder, "base: inner/spec.yaml\nname: other\ntowers: {text: {freeze: false}}\n")
    base, spec = load_spec(folder / "inner" / "spec.yaml"), load_spec(mine)
    expected = dump(base) | {"name": "other"}
    expected["towers"]["text"]["freeze"] = False
    assert dump(spec) == expected
    assert list(spec.towers) == list(base.towers), "the base's order counts"


def test_lists_are_replaced_and_null_takes_out(folder: Path) -> None:
    link = "links: [{kind: cross_attention, from: speech, into: text, every: 1}]"
    spec = load_spec(written(folder, f"base: inner/spec.yaml\n{link}\ntowers: {{text: {{input_projection: null}}}}\n"))
    assert [each.kind for each in spec.links] == ["cross_attention"]
    assert spec.towers["text"].input_projection is None


def test_another_kind_brings_its_own_settings(folder: Path) -> None:
    link = "links: [{kind: prefix, from: speech, into: text}]"
    text = "towers: {speech: {kind: image_units, config: {side: 2, levels: 4, dim: 8, n_layers: 2, n_heads: 2}}}"
    file = written(folder, f"base: inner/spec.yaml\n{link}\n{text}\n")
    try:
        load_spec(file)
    except SpecError as error:
        assert not any("vocab_size" in str(problem) for problem in error.problems)


def test_a_recipe_takes_its_paths_from_beside_its_base(folder: Path) -> None:
    recipe = load_recipe(written(folder, "base: inner/recipe.yaml\ntrain: {steps: 9}\nevaluate: {limit: null}\n"))
    assert recipe.data == folder / "inner" / "corpus"
    assert (recipe.train.steps, recipe.train.warmup, recipe.evaluate.limit) == (9, 1, None)
    assert recipe.spec == load_spec(folder / "inner" / "spec.yaml")


@pytest.mark.parametrize("base", ["", "base: inner/spec.yaml, "])
def test_a_recipe_changes_the_spec_that_its_base_names(folder: Path, base: str) -> None:
    inside = f"spec: {{{base}towers: {{text: {{freeze: false}}}}}}"
    recipe = load_recipe(written(folder, f"base: inner/recipe.yaml\n{inside}\n"))
    assert recipe.spec.towers["text"].freeze is False
    assert len(recipe.spec.links) == len(load_spec(folder / "inner" / "spec.yaml").links)


def test_bases_have_bases_and_overrides_come_last(folder: Path) -> None:
    written(folder, "base: inner/recipe.yaml\nname: second\nseed: 4\n", "second.yaml")
    recipe = load_recipe(written(folder, "base: second.yaml\nname: third\n"), ["train.steps=8", "spec.name=changed"])
    assert (recipe.name, recipe.seed, recipe.train.steps, recipe.spec.name) == ("third", 4, 8, "changed")


def test_a_mistake_is_told_where_it_stands(folder: Path) -> None:
    (folder / "inner" / "spec.yaml").write_text(SPEC + "colour: red\n")
    n_lines = SPEC.count("\n") + 1
    mine = written(folder, "base: inner/spec.yaml\ntowers:\n  text:\n    freez: true\n")
    assert told(mine) == [
        f"inner/spec.yaml:{n_lines}: colour: unknown key 'colour'; valid: contrastive, links, name, next, towers",
        "mine.yaml:4: towers.text.freez: unknown key 'freez'; did you mean 'freeze'?",
    ]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("gone.yaml", "mine.yaml:1: base: no file 'gone.yaml'; expected one beside mine.yaml"),
        ("3", "mine.yaml:1: base: expected the path of a YAML file, got 3"),
        ("mine.yaml", "mine.yaml:1: base: a file cannot be its own base: mine.yaml -> mine.yaml"),
        ("below.yaml", "below.yaml:2: base: a file cannot be its own base: mine.yaml -> below.yaml -> mine.yaml"),
        ("inner/broken.yaml", "inner/broken.yaml:2: not valid YAML: "),
        ("inner/twice.yaml", "inner/twice.yaml:2: name: duplicate key 'name', first given on line 1; keep one of them"),
    ],
)
def test_a_base_that_is_none(folder: Path, base: str, message: str) -> None:
    written(folder / "inner", "name: x\n  towers: {}\n", "broken.yaml")
    written(folder / "inner", f"name: x\nname: y\n{SPEC.partition(chr(10))[2]}", "twice.yaml")
    written(folder, "name: between\nbase: mine.yaml\n", "below.yaml")
    (first, *_) = told(written(folder, f"base: {base}\n"))
    assert first.startswith(message)
