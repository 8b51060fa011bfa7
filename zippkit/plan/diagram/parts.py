"""The content of a diagram, however it is drawn: each tower's parts from bottom to top, and words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from zippkit.plan.graph import Graph, LinkSite
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import TowerConfig
from zippkit.spec.link_spec import LinkSpec
from zippkit.spec.part_sections import Lora
from zippkit.spec.tower_spec import TowerSpec

Style = Literal["frozen", "trained", "partly"]


@dataclass(frozen=True)
class Part:
    """One thing in a tower's column."""

    kind: Literal["embedding", "input_projection", "layers", "tap", "site", "head"]
    tower: str
    depth: int
    """Depth of the tower once this part has run."""
    label: str = ""
    """The text on it; for a tap, the link that reads there."""
    folded: bool = False
    """Layers, one or a run of them, after which no link reads or acts."""
    site: LinkSite | None = None


def _layers(tower: str, config: TowerConfig, marked: set[int]) -> Iterator[Part]:
    """Each marked layer alone, and the others folded into runs."""
    first = 1
    for depth in range(1, config.n_layers + 1):
        if depth + 1 in marked or depth in marked or depth == config.n_layers:
            label = f"layer {depth}" if first == depth else f"layers {first}-{depth}"
            yield Part("layers", tower, depth, label, folded=depth not in marked)
            first = depth + 1


def tower_parts(spec: CompositionSpec, graph: Graph, tower: str) -> Iterator[Part]:
    """A tower's parts in the order in which they run.

    A tap stands before the sites of its depth, since a source is read as it was before any link rewrote it.
    """
    config = graph.towers[tower]
    taps = dict.fromkeys((site.source_depth, site.link) for site in graph.sites if site.source == tower)
    sites = [site for site in graph.sites if site.target == tower]
    yield Part("embedding", tower, 0, "embedding")
    projection = spec.towers[tower].input_projection
    if projection is not None:
        yield Part("input_projection", tower, 0, f"input projection, {mlp_label(projection.depth)}")
    yield from _links_at(spec, tower, 0, taps, sites)
    for layers in _layers(tower, config, {depth for depth, _ in taps} | {site.target_depth for site in sites}):
        yield layers
        yield from _links_at(spec, tower, layers.depth, taps, sites)
    yield Part("head", tower, config.n_layers, "head" if config.predicts else "states")


def _links_at(
    spec: CompositionSpec, tower: str, at: int, taps: Iterable[tuple[int, str]], sites: Iterable[LinkSite]
) -> Iterator[Part]:
    yield from (Part("tap", tower, depth, link) for depth, link in taps if depth == at)
    for site in sites:
        if site.target_depth == at:
            yield Part("site", tower, at, words(link_of(spec, site).kind), site=site)


def link_of(spec: CompositionSpec, site: LinkSite) -> LinkSpec:
    """The link that acts at a site."""
    return next(link for link in spec.links if link.label == site.link)


def style_of(tower: TowerSpec) -> Style:
    """Frozen as a whole, trained as a whole, or partly by rules."""
    actions = (
        {"freeze" if a == "lora" else a for a in tower.freeze.values()}
        if isinstance(tower.freeze, dict)
        else {"freeze" if tower.freeze else "train"}
    )
    if len(actions) > 1:
        return "partly"
    return "frozen" if actions == {"freeze"} else "trained"


def part_style(spec: CompositionSpec, part: Part) -> Style:
    """Whether the link at a site, or a tower's input projection, is frozen."""
    projection = spec.towers[part.tower].input_projection
    frozen = link_of(spec, part.site).freeze if part.site else projection is not None and projection.freeze
    return "frozen" if frozen else "trained"


def words(name: str) -> str:
    """A kind's name as it is read: ``gated_cross_attention`` as ``gated cross attention``."""
    return name.replace("_", " ")


def mlp_label(depth: int) -> str:
    """``MLP x3`` for three linear layers, ``linear`` for one."""
    return "linear" if depth == 1 else f"MLP x{depth}"


def projection_label(link: LinkSpec) -> str:
    """The text between source and target on a link's arrow."""
    return mlp_label(link.projection.depth) if link.settings.projects else "keys, values"


def tower_facts(spec: TowerSpec, config: TowerConfig) -> list[str]:
    """The text under a tower's name."""
    layers = f"{config.n_layers} layer" + ("s" if config.n_layers > 1 else "")
    vocabulary = "continuous inputs" if config.vocab_size is None else f"vocab {config.vocab_size:,}"
    added = [f"{name} +{extra.size:,}" for name, extra in spec.extend_vocabulary.items()]
    more = [f"LoRA, rank {(spec.lora or Lora()).rank}"] if spec.adapts else []
    more += [f"weights of {spec.share_with}"] if spec.share_with else []
    return [spec.kind, f"{layers}, dim {config.dim}", " ".join([vocabulary, *added]), *more]
