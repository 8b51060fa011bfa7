"""Mistakes of a spec: inside its sections, with their names, and between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from zippkit.errors import did_you_mean
from zippkit.spec.checks.cross_checks import misfits
from zippkit.spec.checks.link_checks import link_complaints
from zippkit.spec.checks.tower_checks import tower_complaints
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.link_spec import LinkSpec
from zippkit.spec.validation import Complaint
from zippkit.spec.words import TAKEN_NAMES


def spec_complaints(spec: CompositionSpec) -> Iterator[Complaint]:
    """Yield all mistakes of a spec of sound keys and types: names, kinds, configs, frames, freeze rules, shapes."""
    for name, tower in spec.towers.items():
        if name in TAKEN_NAMES:
            yield ("towers", name), f"{name!r} means something else in a model; call the tower otherwise"
        # What it has from another tower is told there.
        for key_path, message in tower_complaints(tower) if tower.share_with not in spec.towers else ():
            yield ("towers", name, *key_path), message
    for i, link in enumerate(spec.links):
        for key_path, message in _link(spec, link):
            yield ("links", i, *key_path), message
    yield from _link_names(spec)
    yield from misfits(spec)


def _link_names(spec: CompositionSpec) -> Iterator[Complaint]:
    counts = Counter(link.label for link in spec.links)
    for i, link in enumerate(spec.links):
        if link.label in TAKEN_NAMES:
            yield ("links", i, "name"), f"{link.label!r} means something else in a model; call the link otherwise"
        if counts[link.label] > 1:
            yield ("links", i), f"{counts[link.label]} links are called {link.label!r}; give each a distinct `name`"


def _link(spec: CompositionSpec, link: LinkSpec) -> Iterator[Complaint]:
    for key, tower in (("from", link.source), ("into", link.target)):
        if tower not in spec.towers:
            yield (key,), f"no tower is called {tower!r}{did_you_mean(tower, spec.towers)}"
    yield from link_complaints(link)
    config = link.resolved[0]
    if config is None or link.source not in spec.towers or link.target not in spec.towers:
        return
    source, target = (spec.towers[name].resolved[0] for name in (link.source, link.target))
    if source is not None and target is not None:
        for message in config.misfits(source, target):
            yield ("config",), message
