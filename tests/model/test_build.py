"""A spec to a model: what depends on the seed, what is frozen, how links and input projections start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import zippkit
from helpers.compositions import SPEC, link, make_spec, tower
from zippkit.batch.batch import Segment
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.composition import Composition
from zippkit.errors import CheckpointError, SpecError
from zippkit.loading import load_spec
from zippkit.model.layers import ResidualMLP
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.registry import UnknownKindError
from zippkit_towers.decoder.config import DecoderConfig


def towers(**more: Any) -> dict[str, Any]:
    return {"text": tower(2, 16, **more), "speech": tower(3, 12, 30)}


LINKS = [link("speech", "text", every=1, projection={"depth": 3, "width": 10}), link("text", "speech", every=3)]


def same(a: Composition, b: Composition) -> bool:
    first, second = a.model.state_dict(), b.model.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_new_parameters_depend_on_the_seed_alone() -> None:
    spec = make_spec(towers(), LINKS)
    first = zippkit.compile(spec, seed=3)
    torch.rand(5)
    assert same(first, zippkit.compile(spec, seed=3))
    assert not same(first, zippkit.compile(spec, seed=4))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    zippkit.compile(spec, seed=9)
    assert torch.equal(torch.rand(3), expected), "nobody else's random numbers are moved"


def test_modules_are_those_of_the_graph() -> None:
    zipped = zippkit.compile(make_spec(towers(input_projection={}), LINKS))
    assert zipped.model.sites() == {("speech_to_text", 0), ("speech_to_text", 1), ("text_to_speech", 0)}
    assert zipped.model.sites() == {(site.link, site.index) for site in zipped.graph.sites}
    linear = [m for m in zipped.model.links["speech_to_text"][0].projection if isinstance(m, torch.nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == [(10, 12), (10, 10), (16, 10)]
    assert set(zipped.model.input_projections) == {"text"}
    assert zipped.plan == zipped.model.plan


def test_a_new_composition_is_its_towers() -> None:
    """Links and residual input projections start as the identity."""
    zipped = zippkit.compile(make_spec(towers(input_projection={"depth": 3, "width": 5}), LINKS))
    plain = zippkit.compile(make_spec(towers()))
    plain.model.towers.load_state_dict(zipped.model.towers.state_dict())
    batch = zipped.collate([[Segment("text", [1, 2]), Segment("speech", [3]), Segment("text", [4])]])
    for name, logits in zipped.model(batch).items():
        assert torch.equal(logits, plain.model(batch)[name])


@pytest.mark.parametrize(
    ("keys", "shapes", "ends_with"),
    [
        ({}, [(16, 16), (16, 16)], torch.nn.Linear),
        ({"depth": 3, "width": 4, "activation": "gelu"}, [(4, 16), (4, 4), (16, 4)], torch.nn.Linear),
        ({"residual": False}, [(16, 16), (16, 16)], torch.nn.ReLU),
        ({"residual": False, "depth": 1, "activation": "silu"}, [(16, 16)], torch.nn.SiLU),
    ],
)
def test_input_projections(keys: dict[str, Any], shapes: list[tuple[int, int]], ends_with: type) -> None:
    module = zippkit.compile(make_spec(towers(input_projection=keys))).model.input_projections["text"]
    layers = module.mlp if keys.get("residual", True) else module
    assert isinstance(module, ResidualMLP) == keys.get("residual", True)
    assert [tuple(m.weight.shape) for m in layers if isinstance(m, torch.nn.Linear)] == shapes
    assert isinstance(layers[-1], ends_with)


@pytest.mark.parametrize(
    ("freeze", "trains"),
    [
        (True, set()),
        ({"embed_*": "train", "layers.*": "freeze", "norm.*": "freeze"}, {"embed_tokens.weight"}),
    ],
)
def test_freezing(freeze: Any, trains: set[str]) -> None:
    zipped = zippkit.compile(make_spec(towers(freeze=freeze, input_projection={}), LINKS))
    parameters = zipped.model.tower("text").named_parameters()
    assert {name for name, parameter in parameters if parameter.requires_grad} == trains
    rest = [zipped.model.tower("speech"), zipped.model.links, zipped.model.input_projections]
    assert all(parameter.requires_grad for module in rest for parameter in module.parameters())


def test_freeze_rules_of_a_tower_that_keeps_its_names_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are checked when it is built."""
    monkeypatch.setattr(DecoderConfig, "parameter_names", lambda self: None)
    spec = make_spec(towers(freeze={"layers.*": "freeze"}))
    with pytest.raises(SpecError) as caught:
        zippkit.compile(spec)
    assert str(caught.value) == (
        "towers.text: freeze: no rule matches 'embed_tokens.weight', 'norm.weight'; add a pattern for it"
    )


def test_a_saved_tower_is_loaded_with_its_config_and_frame(tmp_path: Path) -> None:
    first = zippkit.compile(make_spec(towers(), LINKS), seed=1)
    write_tower(tmp_path / "text", first.model.tower("text"), "decoder")
    (tmp_path / "spec.yaml").write_text("name: a\ntowers:\n  text: {kind: decoder, weights: text, freeze: true}\n")
    spec = load_spec(tmp_path / "spec.yaml")
    second = zippkit.compile(spec)
    assert second.graph.towers["text"] == first.graph.towers["text"]
    for name, parameter in second.model.tower("text").named_parameters():
        assert torch.equal(parameter, first.model.tower("text").get_parameter(name))
    without = zippkit.compile(spec, load_weights=False).model.tower("text")
    assert not torch.equal(without.embed_tokens.weight, second.model.tower("text").embed_tokens.weight)


def test_a_pickle_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "spec.yaml").write_text(SPEC.replace("freeze: true", "weights: weights.pt"))
    with pytest.raises(SpecError, match=r"weights\.pt' is no file of weights"):
        load_spec(tmp_path / "spec.yaml")


def test_weights_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "spec.yaml").write_text(SPEC.replace("freeze: true", "weights: weights.safetensors"))
    spec = load_spec(tmp_path / "spec.yaml")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        zippkit.compile(spec)


def test_an_unchecked_spec_is_refused_with_everything_that_is_wrong() -> None:
    data = {"name": "a", "towers": towers() | {"image": {"kind": "imgae"}}, "links": [link("speech", "txt", every=1)]}
    with pytest.raises(SpecError) as caught:
        zippkit.compile(CompositionSpec.model_validate(data))
    assert [problem.key for problem in caught.value.problems] == ["links[0].into", "towers.image.kind"]
    assert issubclass(UnknownKindError, zippkit.ZippkitError)
