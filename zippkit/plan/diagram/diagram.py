"""Pictures of a composition: Mermaid for a README, SVG for a paper, and proof that they draw exactly its sites."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from zippkit.errors import ZippkitError
from zippkit.plan.diagram.figure import svg
from zippkit.plan.diagram.freezing import Style
from zippkit.plan.diagram.parts import (
    Part,
    layer_style,
    link_of,
    part_style,
    projection_label,
    style_of,
    tower_facts,
    tower_parts,
)
from zippkit.plan.graph import Graph, LinkSite
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.system.files import write_text

__all__ = ["DrawnSite", "drawn_sites", "mermaid", "svg", "write_diagram"]

DrawnSite = tuple[str, int, str, int, str, int]
"""link, index, source, source depth, target, target depth: the fields of a LinkSite."""

_CLASSES = {
    "frozen": "fill:#d8ebf9,stroke:#5b9bd0,color:#1b3a52",
    "trained": "fill:#fde3cd,stroke:#d9853f,color:#4f2a0c",
    "partly": "fill:#e6e0f3,stroke:#8a78bd,color:#33275a,stroke-dasharray:4 3",
    "site": "fill:#fff8e8,stroke:#b07a10,color:#4f3a0c",
}
_PANELS = {
    "frozen": "fill:#f3f9fd,stroke:#c3ddef",
    "trained": "fill:#fff8f2,stroke:#f2d8c1",
    "partly": "fill:#f9f7fd,stroke:#d4cbe8",
}
_MARKERS: dict[Style, str] = {"frozen": "❄", "trained": "🔥", "partly": "❄ 🔥"}
_MERMAID_EDGE = re.compile(
    r'^ *at-(?P<source>\w+)-(?P<source_depth>\d+) ==>\|"[^"]*"\| '
    r"site-(?P<link>\w+)-(?P<index>\d+)-(?P<target>\w+)-(?P<target_depth>\d+)$",
    re.MULTILINE,
)
_SVG_SITE = re.compile(
    r"(?P<link>\w+)\.(?P<index>\d+): "
    r"(?P<source>\w+)\[(?P<source_depth>\d+)\] -> (?P<target>\w+)\[(?P<target_depth>\d+)\]"
)


def _site_node(site: LinkSite) -> str:
    return f"site-{site.link}-{site.index}-{site.target}-{site.target_depth}"


def _node(part: Part, projected: bool) -> str:
    """A part's Mermaid id; ``at-<tower>-<depth>`` is the one after which a source is read at that depth."""
    if part.site is not None:
        return _site_node(part.site)
    if part.kind == "head" or (part.kind == "embedding" and projected):
        return f"{part.kind}-{part.tower}"
    return f"at-{part.tower}-{part.depth}"


def _quoted(*lines: str) -> str:
    """Lines of a label, with Mermaid's own escapes."""
    text = "<br>".join(line.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;") for line in lines)
    return f'"{text}"'


def _mermaid_tower(spec: CompositionSpec, graph: Graph, tower: str) -> Iterator[str]:
    style = style_of(spec.towers[tower])
    parts = [part for part in tower_parts(spec, graph, tower) if part.kind != "tap"]
    projected = any(part.kind == "input_projection" for part in parts)
    nodes = [_node(part, projected) for part in parts]
    yield f"  subgraph tower-{tower}[{_quoted(f'{_MARKERS[style]} {tower}')}]"
    for part, node in zip(parts, nodes, strict=True):
        facts = tower_facts(spec.towers[tower], graph.towers[tower]) if part.kind == "embedding" else []
        adapters = ["LoRA"] if part.kind == "layers" and layer_style(spec, part).adapted else []
        label = _quoted(part.label, *facts, *adapters)
        shape = f"{{{{{label}}}}}" if part.kind == "site" else f"[{label}]"
        own = part_style(spec, part)
        drawn = "site" if part.kind == "site" and own == "trained" else own
        yield f"    {node}{shape}:::{drawn}"
    yield f"    {' --> '.join(nodes)}"
    yield "  end"
    yield f"  style tower-{tower} {_PANELS[style]}"


def mermaid(spec: CompositionSpec, graph: Graph) -> str:
    """A Mermaid flowchart: a subgraph for each tower, layers without any site folded, one thick edge for each site."""
    lines = ["flowchart BT"]
    for tower in graph.towers:
        lines += _mermaid_tower(spec, graph, tower)
    for site in graph.sites:
        link = link_of(spec, site)
        label = _quoted(site.link, projection_label(link))
        source, target = f"at-{site.source}-{site.source_depth}", _site_node(site)
        lines.append(f"  {source} ==>|{label}| {target}")
    lines += [f"  classDef {name} {rules}" for name, rules in _CLASSES.items()]
    return "\n".join(lines) + "\n"


def drawn_sites(text: str) -> set[DrawnSite]:
    """The sites that a Mermaid or SVG text of ours draws, read from its edges alone (certificate C9).

    Raises:
        ZippkitError: neither a Mermaid flowchart nor SVG.
    """
    if text.startswith("flowchart"):
        return {_drawn_site(edge) for edge in _MERMAID_EDGE.finditer(text)}
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ZippkitError(f"neither a Mermaid flowchart nor SVG: {error}") from error
    paths = (path.get("data-site", "") for path in root.iter("{http://www.w3.org/2000/svg}path"))
    sites = (site for path in paths for site in path.split("; "))
    return {_drawn_site(site) for site in map(_SVG_SITE.fullmatch, sites) if site}


def _drawn_site(found: re.Match[str]) -> DrawnSite:
    source_depth, index, target_depth = (int(found[name]) for name in ("source_depth", "index", "target_depth"))
    return found["link"], index, found["source"], source_depth, found["target"], target_depth


def write_diagram(spec: CompositionSpec, graph: Graph, path: str | Path) -> None:
    """Write ``path`` as SVG or Mermaid, by its suffix.

    Raises:
        ZippkitError: another suffix, or a place that cannot be written.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ZippkitError(f"{path}: a diagram ends in .svg or .mmd, got {path.suffix or 'no suffix'!r}")
    write_text(path, _WRITERS[path.suffix](spec, graph))


_WRITERS: dict[str, Callable[[CompositionSpec, Graph], str]] = {".svg": svg, ".mmd": mermaid}
