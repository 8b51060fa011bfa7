"""Links and input projections that the spec freezes: they rest, everywhere that it counts."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import zippkit
from helpers.compositions import bucketed, link, make, make_spec, tower
from helpers.tiny_runs import tiny_recipe
from zippkit.checkpoint.frozen_hashes import check_frozen, frozen_hashes
from zippkit.composition import Composition, load
from zippkit.errors import ZippkitError
from zippkit.evaluation.certificates.frozen import frozen_tensors_rest
from zippkit.evaluation.certificates.gradients import every_parameter_is_reached
from zippkit.loading import check_spec, frozen_at_random
from zippkit.model.loss import loss
from zippkit.plan.diagram.diagram import mermaid, svg
from zippkit.plan.graph import build_graph
from zippkit.plan.plan import Wanted
from zippkit.report.sizes import part_sizes
from zippkit.spec.derived_recipe import derived_recipe, learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.optimizer import build_optimizer
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import train

FROZEN = ("links.speech_to_text.", "input_projections.text.")


def zipped(**more: Any) -> Composition:
    towers = {"text": tower(2, 8, input_projection={"freeze": True}), "speech": tower(2, 8)}
    return make(towers, [link("speech", "text", every=1, freeze=True, **more), link("text", "speech", every=2)])


def is_frozen(name: str) -> bool:
    return name.startswith(FROZEN)


def test_what_is_frozen_is_what_the_spec_says() -> None:
    made = zipped()
    names = {name for name, parameter in made.model.named_parameters() if not parameter.requires_grad}
    assert names == {name for name, _ in made.model.named_parameters() if is_frozen(name)} != set()
    assert frozen_hashes(made.spec, made.model).keys() == names
    groups = build_optimizer(made.model, learning_rates(made.spec, Phase(steps=1)), Phase(steps=1)).param_groups
    assert {group["group"] for group in groups} == {"towers.text", "towers.speech", "links.text_to_speech"}
    sizes = {part.name: part.trained for part in part_sizes(made.model)}
    assert [name for name, trained in sizes.items() if not trained] == [
        "input_projections.text",
        "links.speech_to_text",
    ]
    rates = derived_recipe(made.spec).train.learning_rates
    assert rates.keys() == {"towers.text", "towers.speech", "links.text_to_speech"}


def test_certificates_hold_and_notice() -> None:
    made = zipped()
    assert "frozen tensors" in frozen_tensors_rest(made)
    assert "trained parameters" in every_parameter_is_reached(made)
    before = frozen_hashes(made.spec, made.model)
    name, parameter = next((n, p) for n, p in made.model.named_parameters() if is_frozen(n))
    parameter.requires_grad_(True)
    with pytest.raises(ZippkitError, match=re.escape(f"{name} is trainable although the spec freezes it")):
        check_frozen(before, made.spec, made.model)
    with torch.no_grad():
        parameter.requires_grad_(False).add_(1)
    with pytest.raises(ZippkitError, match=re.escape(f"{name} has moved")):
        check_frozen(before, made.spec, made.model)


def test_gradients_of_the_rest_are_what_they_were() -> None:
    made = zipped()
    thawed = copy.deepcopy(made.model)
    thawed.requires_grad_(True)
    batch = bucketed(made, 0)
    for model in (made.model, thawed):
        loss(model(batch), batch)["total"].backward()
    for (name, found), expected in zip(made.model.named_parameters(), thawed.parameters(), strict=True):
        if is_frozen(name):
            assert found.grad is None
        else:
            assert torch.equal(found.grad, expected.grad), name  # type: ignore[arg-type]


def test_nothing_is_kept_for_a_gradient_that_nobody_wants() -> None:
    """With both towers frozen too, only the other link's direction has a graph."""
    towers = {name: tower(1, 8, freeze=True) for name in ("text", "speech")}
    made = make(towers, [link("speech", "text", every=1, freeze=True), link("text", "speech", every=1)])
    batch = bucketed(made, 0)
    plan = made.plan.prune(Wanted(heads={"text"}, sees=batch.sees))
    assert not made.model.run(plan, batch.towers, batch.multimodal)["text"].requires_grad
    plan = made.plan.prune(Wanted(heads={"speech"}, sees=batch.sees))
    assert made.model.run(plan, batch.towers, batch.multimodal)["speech"].requires_grad


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    model = zipped().model.train()
    modes = {name: module.training for name, module in model.named_modules() if name.count(".") == 1}
    assert {name for name, training in modes.items() if not training} >= {part.rstrip(".") for part in FROZEN}
    assert modes["towers.text"] and modes["links.text_to_speech"]


def test_a_projection_is_shared_by_links_of_one_mind() -> None:
    towers = {name: tower(1, 8) for name in ("text", "speech")}
    shared = {"every": 1, "projection": {"share": "directions"}}
    links = [link("speech", "text", freeze=True, **shared), link("text", "speech", **shared)]
    _, complaints = check_spec({"name": "tiny", "towers": towers, "links": links})
    told = "link 'text_to_speech' trains the projection that both share; freeze both or neither"
    assert complaints == [(("links", 0, "freeze"), told)]
    links[1]["freeze"] = True
    assert make_spec(towers, links).links[1].freeze


def test_diagrams_draw_it_as_frozen() -> None:
    frozen, thawed = zipped().spec, make_spec({"text": tower(2, 8, input_projection={}), "speech": tower(2, 8)},
        [link("speech", "text", every=1), link("text", "speech", every=2)])  # fmt: skip
    drawn, other = (mermaid(spec, build_graph(spec)) for spec in (frozen, thawed))
    assert [len(re.findall(r":::frozen", text)) for text in (drawn, other)] == [3, 0], "two sites and a projection"
    figure, plain = (svg(spec, build_graph(spec)) for spec in (frozen, thawed))
    assert "2 sites, frozen" in figure and "frozen" not in plain


@pytest.mark.slow
def test_a_run_keeps_them_and_says_where_they_came_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tiny_recipe(tmp_path, {"steps": 2})
    train(first, tmp_path / "first")
    before = load(tmp_path / "first")
    spec = yaml.safe_load(yaml.safe_dump(first.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)))
    spec["links"][0]["freeze"] = True
    label = first.spec.links[0].label
    alone = tiny_recipe(tmp_path, {"steps": 2}, spec=spec)
    assert ("links", 0) in frozen_at_random(alone)
    capsys.readouterr()
    second = tiny_recipe(tmp_path, {"steps": 2}, spec=spec, start_from=str(tmp_path / "first"), pretrain={})
    train(second, tmp_path / "second")
    assert "warning" not in capsys.readouterr().err
    after = load(tmp_path / "second")
    old, new = before.model.state_dict(), after.model.state_dict()
    part = f"links.{label}."
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items() if name.startswith(part))
    assert not all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    manifest = json.loads((RunFolder(tmp_path / "second").model / "manifest.json").read_text())
    kept = {name: digest for name, digest in manifest["frozen"].items() if name.startswith(part)}
    assert kept == {n: d for n, d in frozen_hashes(second.spec, before.model).items() if n.startswith(part)} != {}
    assert zippkit.load(tmp_path / "first", spec=second.spec).origins.tensors.keys() >= kept.keys()
