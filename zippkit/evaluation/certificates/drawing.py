"""C9: the diagrams draw exactly the sites of the module."""

from __future__ import annotations

from collections.abc import Iterator

from zippkit.composition import Composition
from zippkit.evaluation.certificates.probe import acting_sites
from zippkit.evaluation.certificates.report import RefutedError, some
from zippkit.plan.diagram import diagram
from zippkit.plan.graph import LinkSite


def diagrams_draw_the_sites(zipped: Composition) -> str:
    """Certificate C9: the SVG and the Mermaid diagram against the link modules and the plan that runs them.

    Raises:
        RefutedError: names every site that is missing or drawn elsewhere, and every edge without a module.
    """
    model = zipped.model
    modules, acting = model.sites(), set(acting_sites(model.plan))
    idle = sorted(modules - {_key(site) for site in acting})
    wrong = [f"{link}.{index} is a module that the plan never runs" for link, index in idle]
    wrong += [f"{_words(site)} has no module" for site in sorted(acting) if _key(site) not in modules]
    for name, text in (
        ("the SVG diagram", diagram.svg(zipped.spec, zipped.graph)),
        ("the Mermaid diagram", diagram.mermaid(zipped.spec, zipped.graph)),
    ):
        drawn = {LinkSite(*site) for site in diagram.drawn_sites(text)}
        wrong += [f"{message} in {name}" for message in _differences(acting, drawn)]
    if wrong:
        raise RefutedError(some(wrong))
    return f"{len(acting)} sites in SVG and in Mermaid"


def _differences(acting: set[LinkSite], drawn: set[LinkSite]) -> Iterator[str]:
    missing, extra = sorted(acting - drawn), sorted(drawn - acting)
    for site in missing:
        elsewhere = [_ends(other) for other in extra if _key(other) == _key(site)]
        yield f"{_words(site)} is " + (f"drawn as {', '.join(elsewhere)}" if elsewhere else "not drawn")
    missed = {_key(site) for site in missing}
    yield from (f"{_words(site)} does not exist, but is drawn" for site in extra if _key(site) not in missed)


def _key(site: LinkSite) -> tuple[str, int]:
    return site.link, site.index


def _ends(site: LinkSite) -> str:
    return f"{site.source}[{site.source_depth}] -> {site.target}[{site.target_depth}]"


def _words(site: LinkSite) -> str:
    return f"{site.link}.{site.index} ({_ends(site)})"
