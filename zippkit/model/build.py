"""A checked spec to a zipped model: build the towers, load their weights, freeze, and add the parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from zippkit.errors import Problem, SpecError
from zippkit.model.added_vocabulary import Vocabularies
from zippkit.model.bare import bare_tower
from zippkit.model.contrastive import ContrastiveLosses
from zippkit.model.dtypes import DTYPES, dtype_of
from zippkit.model.fused import quicken
from zippkit.model.input_projection import InputProjections
from zippkit.model.link_group import Links
from zippkit.model.lora import Adapters
from zippkit.model.new_tower import new_tower
from zippkit.model.next_modality import NextModality
from zippkit.model.part_group import PartGroup
from zippkit.model.tower import Tower
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.graph import Graph, build_graph
from zippkit.plan.plan import build_plan
from zippkit.spec import registry
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.part_kinds import frozen_parts, part_kinds
from zippkit.spec.tower_spec import TowerSpec

GROUPS: dict[str, type[PartGroup]] = {
    "adapters": Adapters,
    "input_projections": InputProjections,
    "links": Links,
    "vocabularies": Vocabularies,
    "contrastive": ContrastiveLosses,
    "next": NextModality,
}
"""The torch half of each kind of part, in the order in which their parameters are drawn: a seed means the same model in
every version."""


def build_tower(
    spec: TowerSpec, key_path: str, load_weights: bool = True, source: Path | None = None, bare: bool = False
) -> Tower:
    """One tower by itself, with its weights loaded and its parameters frozen as the spec says.

    Args:
        spec: of the tower.
        key_path: where it stands, for messages.
        load_weights: load those that the spec names.
        source: other weights to load, whatever the spec names.
        bare: leave it without values where its weights can be mapped (`zippkit.model.bare`).

    Raises:
        SpecError: freeze rules that do not fit the parameters.
        CheckpointError: weights that do not fit.
    """
    cls: type[Tower] = registry.implementation(registry.TOWERS, spec.kind)
    try:
        weights = source or ((spec.weights or spec.settings.weights_path()) if load_weights else None)
    except ValueError as error:
        raise SpecError([Problem(key_path, 0, "config.path", str(error))]) from error
    if weights is not None and not weights.exists():
        raise SpecError([Problem(key_path, 0, "weights", f"{str(weights)!r} does not exist")])
    how = cls, spec.settings, DTYPES[dtype_of(spec, weights)]
    without = bare_tower(*how, weights) if bare and weights is not None else None
    tower = new_tower(*how, weights) if without is None else without
    tower.check()
    parameters = dict(tower.named_parameters())
    try:
        frozen = spec.frozen(parameters)
    except ValueError as error:
        raise SpecError([Problem(key_path, 0, "freeze", str(error))]) from error
    for name, parameter in parameters.items():
        parameter.requires_grad_(not frozen[name])
    return tower


def build_model(
    spec: CompositionSpec,
    *,
    seed: int = 0,
    load_weights: bool = True,
    sources: Mapping[str, Path] | None = None,
    bare: Collection[str] = (),
) -> tuple[ZippedModel, Graph]:
    """Build the whole model; new parameters depend on ``seed`` alone.

    Args:
        spec: the composition.
        seed: of new parameters.
        load_weights: load those that the spec names.
        sources: towers' weights that are loaded in any case, by tower.
        bare: towers that are left without values, to be filled later, where that can be.

    Raises:
        SpecError: everything that is wrong with the spec.
        CheckpointError: weights that do not fit.
    """
    graph = build_graph(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Owners come first, so that shared parameters carry their names.
        owners = {name: tower for name, tower in spec.towers.items() if tower.share_with is None}
        at = sources or {}
        towers = {
            name: build_tower(tower, f"towers.{name}", load_weights, at.get(name), name in bare)
            for name, tower in owners.items()
        }
        towers |= {name: towers[tower.share_with] for name, tower in spec.towers.items() if tower.share_with}
        kinds = [kind.group for kind in part_kinds(spec)]
        in_order = [*(group for group in GROUPS if group in kinds), *(group for group in kinds if group not in GROUPS)]
        built = {group: _group_class(group).build(group, spec, graph, towers) for group in in_order}
    for part in frozen_parts(spec):
        group, _, name = part.partition(".")
        built[group][name].requires_grad_(False)
    model = ZippedModel(build_plan(graph), towers, {group: built[group] for group in kinds})
    quicken(model)
    # Modules begin in training mode; what is frozen rests from the start.
    return model.train(), graph


def _group_class(group: str) -> type[PartGroup]:
    found: type[PartGroup] = GROUPS.get(group) or registry.implementation(registry.PARTS, group)
    return found
