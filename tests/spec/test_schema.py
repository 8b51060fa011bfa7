"""The JSON Schema: valid itself, true of every shipped YAML, and it knows each kind's settings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from helpers.compositions import SPEC
from zippkit.experiment.format import Experiment
from zippkit.spec import registry, schema
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.recipe import Recipe
from zippkit.spec.schema import json_schema

ROOT = Path(__file__).parents[2]
FILES = {path.relative_to(ROOT).as_posix(): yaml.safe_load(path.read_text()) for path in ROOT.glob("recipes/**/*.yaml")}
SHIPPED = {name: data for name, data in FILES.items() if isinstance(data, dict)}
MODELS = {"spec": CompositionSpec, "recipe": Recipe, "experiment": Experiment}


@pytest.fixture(scope="module")
def validators() -> dict[str, Any]:
    return {what: jsonschema.Draft202012Validator(json_schema(model)) for what, model in MODELS.items()}


def errors(validator: Any, data: Any) -> list[str]:
    """Where the schema refuses, and what it says; of alternatives, those that come closest."""
    found = [jsonschema.exceptions.best_match([error]) for error in validator.iter_errors(data)]
    return [f"{error.json_path.removeprefix('$.')}: {error.message}" for error in found]


@pytest.mark.parametrize("what", MODELS)
def test_it_is_a_schema(what: str, validators: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(validators[what].schema)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_yaml_is_valid(name: str, validators: dict[str, Any]) -> None:
    data = yaml_1_2(SHIPPED[name])
    what = "experiment" if "cells" in data else "recipe" if {"spec", "data"} & data.keys() else "spec"
    if {"towers", "base"} & data.keys() or what != "spec":
        assert errors(validators[what], data) == []


def yaml_1_2(data: Any) -> Any:
    """PyYAML reads ``1e-3`` as text, zippkit and editors as a number."""
    if isinstance(data, dict):
        return {key: yaml_1_2(value) for key, value in data.items()}
    if isinstance(data, list):
        return [yaml_1_2(value) for value in data]
    try:
        return float(data) if isinstance(data, str) and "e-" in data else data
    except ValueError:
        return data


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("towers.text.kind", "decodr", "towers.text.kind: 'decodr' is not one of ['decoder', 'hf_causal_lm'"),
        ("links.0.kind", "prefx", "links[0].kind: 'prefx' is not one of ['cross_attention', 'gated_cross_attention'"),
        ("towers.text.config.dimm", 1, "towers.text.config: Additional properties are not allowed ('dimm' was"),
        ("towers.text.config.dim", "wide", "towers.text.config.dim: 'wide' is not of type 'integer'"),
        ("towers.text.config.side", 2, "towers.text.config: Additional properties are not allowed ('side' was"),
        ("links.0.config.gate", "big", "links[0].config.gate: 'big' is not one of ['scalar', 'vector', 'none']"),
        ("links.0.config.queries", 2, "links[0].config: Additional properties are not allowed ('queries' was"),
        ("towers.text.freeze", {"*": "thaw"}, "towers.text.freeze"),
        ("towers.text.extend_vocabulary", {"more": "x"}, "towers.text.extend_vocabulary.more"),
        ("towers.text.kind", None, "towers.text: "),
        ("towers.text.kind", "image_units", ""),
        ("towers.text.extend_vocabulary", {"more": 4, "most": {"size": 3}}, ""),
        ("towers.text.freeze", {"*": "lora"}, ""),
        ("towers.text", {"share_with": "speech"}, ""),
        ("towers.text", {"kind": "hf_causal_lm", "config": {"path": "some/folder"}}, ""),
        ("towers.text", {"kind": "decoder", "weights": "some/folder"}, ""),
    ],
)
def test_what_stands_in_a_config_follows_from_the_kind(
    validators: dict[str, Any], place: str, value: Any, told: str
) -> None:
    data = yaml.safe_load(SPEC)
    *parents, last = place.split(".")
    section = data
    for part in parents:
        section = section[int(part) if part.isdecimal() else part]
    if value is None:
        del section[last]
    else:
        section[last] = value
    found = errors(validators["spec"], data)
    assert bool(found) == bool(told), found
    assert not told or found[0].startswith(told)
    recipe = {"name": "run", "data": "data", "train": {"steps": 1}, "spec": data}
    assert bool(errors(validators["recipe"], recipe)) == bool(told)


def test_every_key_of_every_kind_is_described() -> None:
    definitions = json_schema(CompositionSpec)["$defs"]
    for section, group in (("TowerSpec", registry.TOWERS), ("LinkSpec", registry.LINKS)):
        for kind in registry.kinds(group):
            settings = definitions[f"{section}.{kind.name}"]["properties"]
            assert settings.keys() == registry.config_class(group, kind.name).model_fields.keys()
            assert all("description" in key for key in settings.values()), kind.name


def test_a_kind_that_cannot_be_imported_is_still_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json_schema(CompositionSpec)
    found = registry.config_class

    def broken(group: registry.Group, name: str) -> Any:
        if name == "prefix":
            raise registry.UnknownKindError("no")
        return found(group, name)

    monkeypatch.setattr(schema.registry, "config_class", broken)
    link = json_schema(CompositionSpec)["$defs"]["LinkSpec"]
    before = copy.deepcopy(whole["$defs"]["LinkSpec"])
    assert link["properties"] == before["properties"]
    assert len(link["allOf"]) == len(before["allOf"]) - 1


def test_beside_a_base_nothing_is_required(validators: dict[str, Any]) -> None:
    part = {"base": "other.yaml", "towers": {"text": {"kind": "decoder", "config": {"n_layers": 3}}}}
    assert errors(validators["spec"], part) == []
    part["towers"]["text"]["config"]["n_layerz"] = 3  # type: ignore[index]
    assert "('n_layerz' was" in errors(validators["spec"], part)[0]
    recipe = {"base": "recipe.yaml", "train": {"warmup": 3}, "spec": {"towers": {"text": {"freeze": True}}}}
    assert errors(validators["recipe"], recipe) == []
    assert errors(validators["recipe"], recipe | {"sede": 1})
