"""Mistakes between the sections of a spec: where links act, clocks, hosted modalities, contrastive losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from zippkit.errors import did_you_mean
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import LinkConfig, TowerConfig
from zippkit.spec.link_spec import LinkSpec
from zippkit.spec.shared_weights import SHARED_KEYS
from zippkit.spec.validation import Complaint
from zippkit.spec.words import TAKEN_NAMES


def misfits(spec: CompositionSpec) -> Iterator[Complaint]:
    """Every complaint that needs more than one section, or more than one key of it, to be seen."""
    yield from _sharing(spec)
    yield from _hosting(spec)
    yield from _projecting(spec)
    yield from _contrasts(spec)
    towers = {name: tower.settings for name, tower in spec.towers.items() if tower.resolved[0] is not None}
    links = [(i, link, link.settings) for i, link in enumerate(spec.links) if link.resolved[0] is not None]
    between: dict[frozenset[str], list[tuple[int, LinkSpec, LinkConfig]]] = {}
    for i, link, config in links:
        between.setdefault(frozenset((link.source, link.target)), []).append((i, link, config))
    for i, link, config in links:
        if link.source not in towers or link.target not in towers:
            continue
        others = [(other, settings) for j, other, settings in between[frozenset((link.source, link.target))] if i != j]
        for check in (_at_embedding, _in_attention, _on_one_clock, _in_one_projection):
            for key_path, message in check(link, config, towers, others):
                yield ("links", i, *key_path), message
        source, target = towers[link.source], towers[link.target]
        if link.projection.share == "directions" and source.dim != target.dim:
            seen = f"{source.dim} and {target.dim}"
            yield ("links", i, "projection", "share"), f"one projection for both directions needs one width, got {seen}"


Towers = dict[str, TowerConfig]
Others = list[tuple[LinkSpec, LinkConfig]]
"""The other links between the same two towers, whichever way they go."""


def _at_embedding(link: LinkSpec, config: LinkConfig, towers: Towers, others: Others) -> Iterator[Complaint]:
    if config.acts != "embedding":
        return
    target = towers[link.target]
    if not target.causal or target.continuous:
        yield (
            ("into",),
            f"{link.target!r} reads no run of tokens from left to right, so nothing can be inserted",
        )
    if any(settings.acts == "embedding" and other.source == link.source for other, settings in others):
        yield ("kind",), f"another link puts {link.source!r} into {link.target!r}'s sequence too; expected one"


def _in_attention(link: LinkSpec, config: LinkConfig, towers: Towers, others: Others) -> Iterator[Complaint]:
    del others
    if config.acts != "attention":
        return
    shapes = {name: towers[name].shared_attention for name in (link.source, link.target)}
    for name, shape in shapes.items():
        if shape is None or not towers[name].causal:
            yield ("kind",), f"tower {name!r} has no attention that others can join"
    if None not in shapes.values() and len(set(shapes.values())) > 1:
        seen = " and ".join(f"{s.n_kv_heads} of width {s.head_width} in {name!r}" for name, s in shapes.items() if s)
        yield ("kind",), f"towers that share attention need the same key heads, got {seen}"


def _on_one_clock(link: LinkSpec, config: LinkConfig, towers: Towers, others: Others) -> Iterator[Complaint]:
    between = {link.source, link.target}
    if any(other.clock != link.clock for other, _ in others):
        yield ("clock",), f"another link between {' and '.join(sorted(between))} has another clock; expected the same"
    if link.clock != "sync":
        return
    if config.by_segment:
        yield ("clock",), f"kind {link.kind!r} reads whole segments, so its towers cannot advance together"
    for name in (link.source, link.target):
        if not towers[name].causal:
            yield ("clock",), f"{name!r} is not causal, so it cannot advance token by token"


def _in_one_projection(link: LinkSpec, config: LinkConfig, towers: Towers, others: Others) -> Iterator[Complaint]:
    del config, towers
    shared = [other for other, _ in others if other.projection == link.projection and not other.freeze]
    if link.freeze and link.projection.share == "directions" and shared:
        yield ("freeze",), f"link {shared[0].label!r} trains the projection that both share; freeze both or neither"


def _sharing(spec: CompositionSpec) -> Iterator[Complaint]:
    for name, tower in spec.towers.items():
        key_path = ("towers", name, "share_with")
        if tower.share_with is None:
            continue
        other = spec.towers.get(tower.share_with)
        if other is None:
            yield key_path, f"no tower is called {tower.share_with!r}{did_you_mean(tower.share_with, spec.towers)}"
        elif other is tower or other.share_with is not None:
            yield key_path, f"{tower.share_with!r} has no weights of its own; name the tower that has"
        else:
            differ = [key for key in SHARED_KEYS if getattr(tower, key) != getattr(other, key)]
            differ += ["extend_vocabulary"] if tower.extend_vocabulary else []
            if differ:
                yield (
                    key_path,
                    f"the weights are {tower.share_with!r}'s, so it decides; remove {', '.join(differ)} here",
                )


def _projecting(spec: CompositionSpec) -> Iterator[Complaint]:
    for name, tower in spec.towers.items():
        if tower.input_projection is not None and len(spec.modalities) == 1:
            key_path = ("towers", name, "input_projection")
            yield key_path, "only rows of several modalities pass it, and the spec has one; remove `input_projection`"


def _hosting(spec: CompositionSpec) -> Iterator[Complaint]:
    counts = Counter(name for tower in spec.towers.values() for name in tower.extend_vocabulary)
    for host, tower in spec.towers.items():
        config = tower.resolved[0]
        if tower.extend_vocabulary and config is not None and config.vocab_size is None:
            yield ("towers", host, "extend_vocabulary"), "the tower has no vocabulary that could be extended"
        elif tower.extend_vocabulary and config is not None and not config.predicts:
            yield ("towers", host, "extend_vocabulary"), "the tower has no head, so no vocabulary can be added to it"
        for name, added in tower.extend_vocabulary.items():
            key_path = ("towers", host, "extend_vocabulary", name)
            if name in spec.towers or counts[name] > 1:
                yield (
                    key_path,
                    f"{name!r} is {'a tower' if name in spec.towers else 'given twice'}; expected a new name",
                )
            begin, end = added.frame.begin, added.frame.end
            if begin == end or max(begin, end) >= added.size:
                expected = f"expected two different ids below {added.size}"
                yield key_path, f"begin and end are {begin} and {end}; {expected}"


def _contrasts(spec: CompositionSpec) -> Iterator[Complaint]:
    counts = Counter(contrast.label for contrast in spec.contrastive)
    for i, contrast in enumerate(spec.contrastive):
        ends = (("from", contrast.source, contrast.source_depth), ("into", contrast.target, contrast.target_depth))
        for key, name, depth in ends:
            key_path = ("contrastive", i, key)
            if name not in spec.towers:
                yield key_path, f"no tower is called {name!r}{did_you_mean(name, spec.towers)}"
            elif (config := spec.towers[name].resolved[0]) and depth is not None and depth > config.n_layers:
                yield key_path, f"depth {depth} of {name!r}, which has {config.n_layers} layers"
        if contrast.source == contrast.target:
            yield ("contrastive", i, "into"), f"two towers are compared, but both are {contrast.source!r}"
        label = contrast.label
        if counts[label] > 1 or label in spec.modalities or label in TAKEN_NAMES:
            yield ("contrastive", i), f"something else is called {label!r}; give this loss another `name`"
