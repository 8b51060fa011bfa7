"""Mistakes inside the section of one link."""

from __future__ import annotations

from collections.abc import Iterator

from zippkit.spec.link_spec import LinkSpec
from zippkit.spec.part_sections import Projection
from zippkit.spec.validation import Complaint


def link_complaints(link: LinkSpec) -> Iterator[Complaint]:
    """Yield all mistakes inside a link's section: its kind and config, and whatever contradicts itlink."""
    if link.source == link.target:
        yield ("into",), f"a link joins two towers, but `from` and `into` are both {link.source!r}"
    config, complaints = link.resolved
    yield from complaints
    acts = config.acts if config else "after_layer"
    if acts == "embedding":
        yield from _at_embedding(link)
        return
    if (link.every is None) == (link.sites is None) and (config or link.sites):
        yield (), "expected either `every` or `sites`" + (", got both" if link.sites else ", got neither")
    if link.sites is not None and (link.source_every or link.source_depth):
        yield ("sites",), "`sites` says the source depths itself; remove `source_every` and `source`"
    if link.source_every and link.source_depth:
        yield ("source",), f"expected either `source_every` or `source: {link.source_depth}`, got both"
    for i, site in enumerate(link.sites or ()):
        if site.target == 0:
            yield ("sites", i, "into"), "0 is the embedding, but this kind acts on layers; expected 1 or more"
        if acts == "attention" and site.source != site.target:
            yield ("sites", i, "from"), f"attention is shared at one depth; expected {site.target}"
    if acts == "attention" and (link.source_every or link.source_depth):
        key = "source_every" if link.source_every else "source"
        yield (key,), f"kind {link.kind!r} shares the attention of layers of one depth; remove `{key}`"
    if config and not config.projects and link.projection != Projection():
        yield ("projection",), f"kind {link.kind!r} projects nothing; remove `projection`"


def _at_embedding(link: LinkSpec) -> Iterator[Complaint]:
    for key, given in (("every", link.every), ("source_every", link.source_every)):
        if given is not None:
            yield (key,), f"kind {link.kind!r} acts once, at the target's embedding; remove `{key}`"
    if link.sites is not None and (len(link.sites) > 1 or link.sites[0].target != 0):
        yield ("sites",), f"kind {link.kind!r} acts once, at the embedding; expected one site with `into: 0`"
