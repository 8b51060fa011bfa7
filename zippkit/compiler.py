"""A checked spec to a zipped model: build the towers, load their weights, freeze, and set the links in place."""

from __future__ import annotations

import torch
from torch import nn

from zippkit import registry
from zippkit.errors import Problem, SpecError
from zippkit.graph import Graph, build_graph
from zippkit.layers import ResidualMLP, mlp
from zippkit.links.base import Link
from zippkit.model import ZippedModel
from zippkit.plan import build_plan
from zippkit.spec import CompositionSpec, InputProjection, LinkSpec, TowerSpec
from zippkit.tower import Tower


def build_tower(spec: TowerSpec, place: str, load_weights: bool = True) -> Tower:
    """One tower by itself, with its weights loaded and its parameters frozen as the spec says.

    Raises:
        SpecError: freeze rules that do not fit the parameters.
        CheckpointError: weights that do not fit.
    """
    cls: type[Tower] = registry.implementation(registry.TOWERS, spec.kind)
    tower = cls(spec.settings)
    if spec.weights is not None and load_weights:
        if not spec.weights.exists():
            raise SpecError([Problem(place, 0, "weights", f"{str(spec.weights)!r} does not exist")])
        tower.load_weights(spec.weights)
    parameters = dict(tower.named_parameters())
    try:
        frozen = spec.frozen(parameters)
    except ValueError as error:
        raise SpecError([Problem(place, 0, "freeze", str(error))]) from error
    for name, parameter in parameters.items():
        parameter.requires_grad_(not frozen[name])
    return tower


def _input_projection(spec: InputProjection, dim: int) -> nn.Module:
    widths = (dim, *[spec.width or dim] * (spec.depth - 1), dim)
    return ResidualMLP(widths, spec.activation) if spec.residual else mlp(widths, spec.activation, activate_last=True)


def _link(spec: LinkSpec, graph: Graph) -> Link:
    source_dim, target_dim = graph.towers[spec.source].dim, graph.towers[spec.target].dim
    wanted = spec.projection
    projection = mlp((source_dim, *[wanted.width or target_dim] * (wanted.depth - 1), target_dim), wanted.activation)
    cls: type[Link] = registry.implementation(registry.LINKS, spec.kind)
    return cls(spec.settings, source_dim, target_dim, projection)


def build_model(spec: CompositionSpec, *, seed: int = 0, load_weights: bool = True) -> tuple[ZippedModel, Graph]:
    """Build the whole model; new parameters depend on ``seed`` alone.

    Raises:
        SpecError: everything that is wrong with the spec.
        CheckpointError: weights that do not fit.
    """
    graph = build_graph(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        towers = {name: build_tower(tower, f"towers.{name}", load_weights) for name, tower in spec.towers.items()}
        projections = {
            name: _input_projection(tower.input_projection, graph.towers[name].dim)
            for name, tower in spec.towers.items()
            if tower.input_projection is not None
        }
        links_by_name = {link.label: link for link in spec.links}
        links = {site: _link(links_by_name[site.link], graph) for site in graph.sites}
    return ZippedModel(build_plan(graph), towers, projections, links), graph
