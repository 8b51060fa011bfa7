"""A checked spec to a zipped model: build the towers, load their weights, freeze, and set the links in place."""

from __future__ import annotations

import torch
from torch import nn

from zippkit.errors import Problem, SpecError
from zippkit.model.added_vocabulary import AddedVocabulary
from zippkit.model.contrastive import ContrastHead
from zippkit.model.dtypes import DTYPES, dtype_of
from zippkit.model.layers import ResidualMLP, mlp
from zippkit.model.links.base import Link
from zippkit.model.lora import attach
from zippkit.model.next_modality import NextHead
from zippkit.model.tower import Tower, new_tower
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.graph import Graph, build_graph
from zippkit.plan.plan import build_plan
from zippkit.spec import registry
from zippkit.spec.composition_spec import CompositionSpec, Contrast, InputProjection, LinkSpec, TowerSpec


def build_tower(spec: TowerSpec, place: str, load_weights: bool = True) -> Tower:
    """One tower by itself, with its weights loaded and its parameters frozen as the spec says.

    Raises:
        SpecError: freeze rules that do not fit the parameters.
        CheckpointError: weights that do not fit.
    """
    cls: type[Tower] = registry.implementation(registry.TOWERS, spec.kind)
    try:
        weights = (spec.weights or spec.settings.weights_path()) if load_weights else None
    except ValueError as error:
        raise SpecError([Problem(place, 0, "config.path", str(error))]) from error
    if weights is not None and not weights.exists():
        raise SpecError([Problem(place, 0, "weights", f"{str(weights)!r} does not exist")])
    tower = new_tower(cls, spec.settings, DTYPES[dtype_of(spec, weights)], weights)
    tower.check()
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


class _Links:
    """Builds a link for each site; projections that sites share are built once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._shared: dict[object, nn.Module] = {}

    def build(self, spec: LinkSpec) -> Link:
        source_dim, target_dim = (self.graph.towers[name].dim for name in (spec.source, spec.target))
        cls: type[Link] = registry.implementation(registry.LINKS, spec.kind)
        return cls(spec.settings, source_dim, target_dim, self._projection(spec, source_dim, target_dim))

    def _projection(self, spec: LinkSpec, source_dim: int, target_dim: int) -> nn.Module:
        if not spec.settings.projects:
            return nn.Identity()
        wanted = spec.projection
        inner = [wanted.width or target_dim] * (wanted.depth - 1)
        widths = (spec.settings.projected_dim(source_dim), *inner, target_dim)
        shared: dict[str, object] = {"sites": spec.label, "directions": frozenset((spec.source, spec.target))}
        if wanted.share == "none":
            return mlp(widths, wanted.activation)
        key = (shared[wanted.share], widths, wanted.activation)
        if key not in self._shared:
            self._shared[key] = mlp(widths, wanted.activation)
        return self._shared[key]


def _adapters(name: str, spec: TowerSpec, tower: Tower) -> nn.ModuleDict:
    try:
        lora, weights = spec.adapted(parameter for parameter, _ in tower.named_parameters())
        return attach(tower, weights, lora)
    except ValueError as error:
        raise SpecError([Problem(f"towers.{name}", 0, "lora", str(error))]) from error


def _vocabulary(spec: TowerSpec) -> AddedVocabulary:
    config = spec.settings
    return AddedVocabulary(config.vocab_size or 0, sum(v.size for v in spec.extend_vocabulary.values()), config.dim)


def _contrast(spec: Contrast, graph: Graph) -> ContrastHead:
    dims = (graph.towers[spec.source].dim, graph.towers[spec.target].dim)
    return ContrastHead(spec.source, dims, spec.width, spec.weight)


def build_model(spec: CompositionSpec, *, seed: int = 0, load_weights: bool = True) -> tuple[ZippedModel, Graph]:
    """Build the whole model; new parameters depend on ``seed`` alone.

    Raises:
        SpecError: everything that is wrong with the spec.
        CheckpointError: weights that do not fit.
    """
    graph = build_graph(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Owners come first, so that shared parameters carry their names.
        owners = {name: tower for name, tower in spec.towers.items() if tower.share_with is None}
        towers = {name: build_tower(tower, f"towers.{name}", load_weights) for name, tower in owners.items()}
        adapters = {name: found for name, tower in owners.items() if (found := _adapters(name, tower, towers[name]))}
        towers |= {name: towers[tower.share_with] for name, tower in spec.towers.items() if tower.share_with}
        projections = {
            name: _input_projection(tower.input_projection, graph.towers[name].dim)
            for name, tower in spec.towers.items()
            if tower.input_projection is not None
        }
        links_by_name = {link.label: link for link in spec.links}
        build = _Links(graph).build
        links = {site: build(links_by_name[site.link]) for site in graph.sites}
        vocabularies = {name: _vocabulary(tower) for name, tower in spec.towers.items() if tower.extend_vocabulary}
        contrasts = {contrast.label: _contrast(contrast, graph) for contrast in spec.contrastive}
        next_heads = {}
        if spec.next is not None:
            next_heads = {name: NextHead(graph.towers[name].dim, len(graph.modalities)) for name in towers}
    weight = spec.next.weight if spec.next is not None else 0.0
    plan = build_plan(graph)
    model = ZippedModel(plan, towers, projections, links, vocabularies, contrasts, adapters, next_heads, weight)
    return model, graph
