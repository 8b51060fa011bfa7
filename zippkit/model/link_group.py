"""The links of a model: a module for each site of each link, and projections that sites or directions share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import nn

from zippkit.model.layers import mlp
from zippkit.model.links.base import Link
from zippkit.model.part_group import PartGroup
from zippkit.model.tower import Tower
from zippkit.plan.graph import Graph
from zippkit.spec import registry
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.link_spec import LinkSpec


class Links(PartGroup):
    """``links.<name>.<site>``; the plan's ``write`` and ``read`` run them."""

    @classmethod
    def build(cls, group: str, spec: CompositionSpec, graph: Graph, towers: Mapping[str, Tower]) -> Self:
        """Draw a link module for every site, and the projections that sites share."""
        del towers
        specs, builder = {link.label: link for link in spec.links}, _Builder(graph)
        sites: dict[str, nn.ModuleList] = {}
        for site in graph.sites:
            sites.setdefault(site.link, nn.ModuleList()).append(builder.build(specs[site.link]))
        return cls(group, sites)

    def around(self, tower: str, owner: str) -> bool:
        """Links act between a tower's operations, not inside them."""
        del tower, owner
        return False


class _Builder:
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
