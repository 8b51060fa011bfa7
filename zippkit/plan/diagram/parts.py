"""The content of a diagram, however it is drawn: each tower's parts from bottom to top, and words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from zippkit.plan.diagram.freezing import EMBEDDING, HEAD, Freezing, LayerStyle, Style
from zippkit.plan.diagram.repeats import Repeats
from zippkit.plan.graph import Graph, LinkSite
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import TowerConfig
from zippkit.spec.link_spec import LinkSpec
from zippkit.spec.part_kinds import link_called
from zippkit.spec.part_sections import Lora
from zippkit.spec.tower_spec import TowerSpec

NOT_FOLDED = Repeats()


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
    n_repeats: int = 1
    """How often it stands here, drawn once."""


def _layers(tower: str, last: int, marked: set[int], styles: Freezing, repeats: Repeats) -> Iterator[Part]:
    """Each marked layer alone, and the others folded into runs of one style; a zone of repeats is one part."""
    first, zone = 1, repeats.zones.get(tower)
    for depth in range(1, last + 1):
        inside = zone is not None and depth in zone
        ends = depth == last or depth in marked or depth + 1 in marked or styles.layer(depth) != styles.layer(depth + 1)
        ends = ends or (zone is not None and depth + 1 == zone.first)
        if zone is not None and depth == zone.last:
            yield Part("layers", tower, depth, _numbered(zone.first, depth), n_repeats=zone.n_repeats)
            first = depth + 1
        elif ends and not inside:
            yield Part("layers", tower, depth, _numbered(first, depth), folded=depth not in marked)
            first = depth + 1


def _numbered(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}-{last}"


def tower_parts(spec: CompositionSpec, graph: Graph, tower: str, repeats: Repeats = NOT_FOLDED) -> Iterator[Part]:
    """A tower's parts in the order in which they run.

    A tap stands before the sites of its depth, since a source is read as it was before any link rewrote it.

    Args:
        spec: the composition.
        graph: of it.
        tower: its name.
        repeats: what is drawn once for many.
    """
    config = graph.towers[tower]
    tapped = (site for site in graph.sites_from[tower] if site not in repeats.hidden)
    taps = dict.fromkeys((_drawn(repeats, tower, site.source_depth), site.link) for site in tapped)
    sites = [site for site in graph.sites_into[tower] if site not in repeats.hidden]
    acting = {_drawn(repeats, tower, site.target_depth) for site in sites}
    yield Part("embedding", tower, 0, "embedding")
    projection = spec.towers[tower].input_projection
    if projection is not None:
        yield Part("input_projection", tower, 0, f"input projection, {mlp_label(projection.depth)}")
    yield from _links_at(spec, tower, 0, taps, sites, repeats)
    marked = {depth for depth, _ in taps} | acting
    for layers in _layers(tower, config.n_layers, marked, Freezing(spec.towers[tower]), repeats):
        yield layers
        yield from _links_at(spec, tower, layers.depth, taps, sites, repeats)
    yield Part("head", tower, config.n_layers, "head" if config.predicts else "states")


def _drawn(repeats: Repeats, tower: str, depth: int) -> int:
    """The depth at which a state is drawn: a zone's last, for all of a zone."""
    zone = repeats.zone(tower, depth)
    return depth if zone is None else zone.last


def tap_of(site: LinkSite, repeats: Repeats = NOT_FOLDED) -> Part:
    """The part that a site's arrow starts from."""
    return Part("tap", site.source, _drawn(repeats, site.source, site.source_depth), site.link)


def _links_at(
    spec: CompositionSpec,
    tower: str,
    at: int,
    taps: Iterable[tuple[int, str]],
    sites: Iterable[LinkSite],
    repeats: Repeats,
) -> Iterator[Part]:
    yield from (Part("tap", tower, depth, link) for depth, link in taps if depth == at)
    for site in sites:
        if _drawn(repeats, tower, site.target_depth) == at:
            n_repeats = len(repeats.folded.get(site, (site,)))
            yield Part("site", tower, at, words(link_of(spec, site).kind), site=site, n_repeats=n_repeats)


def link_of(spec: CompositionSpec, site: LinkSite) -> LinkSpec:
    """The link that acts at a site."""
    return link_called(spec, site.link)


def style_of(tower: TowerSpec) -> Style:
    """Frozen as a whole, trained as a whole, or partly by rules."""
    return Freezing(tower).whole


def part_style(spec: CompositionSpec, part: Part) -> Style:
    """Whether a part is frozen: a link at a site and a tower's input projection each by themselves, layers by rules."""
    tower = spec.towers[part.tower]
    if part.site is not None:
        return "frozen" if link_of(spec, part.site).freeze else "trained"
    if part.kind == "input_projection":
        return "frozen" if tower.input_projection is not None and tower.input_projection.freeze else "trained"
    if part.kind == "layers":
        return layer_style(spec, part).style
    return Freezing(tower).end(EMBEDDING if part.kind == "embedding" else HEAD)


def layer_style(spec: CompositionSpec, part: Part) -> LayerStyle:
    """What becomes of a layer's weights; of several in one part, the last one's, since they are alike."""
    return Freezing(spec.towers[part.tower]).layer(part.depth)


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
