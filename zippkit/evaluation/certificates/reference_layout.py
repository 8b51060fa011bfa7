"""Where the tokens of one row stand in each tower, and at which depths links act: the layout of the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from zippkit.evaluation.certificates.reference_layers import Mask, Token
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.link_spec import LinkSpec


@dataclass(frozen=True)
class Run:
    """A segment of the row."""

    modality: str
    tower: str
    tokens: Sequence[int]
    """In the tower's ids, begin and end included; one 0 for each state of a continuous tower."""


def places_of(link: LinkSpec, n_tokens: int) -> int:
    """Return how many positions a segment of that many tokens, frame included, takes in the target's sequence."""
    settings: Any = link.settings
    return int(settings.queries) if link.kind == "resampler" else math.ceil(n_tokens / settings.stack)


def at_embedding(link: LinkSpec) -> bool:
    """Whether the link inserts its memory into the target's sequence, at the embedding."""
    settings: Any = link.settings
    return link.kind == "prefix" or (link.kind == "resampler" and settings.output == "prefix")


def site_depths(link: LinkSpec, n_source: int, n_target: int) -> list[tuple[int, int]]:
    """Return each site's source depth, which is read, and its target depth, whose state is rewritten.

    Of joint attention, both are the layer in which it happens.
    """
    settings: Any = link.settings
    if at_embedding(link):
        depth = {"embedding": 0}.get(link.source_depth or "", n_source)
        return [(link.sites[0].source if link.sites else depth, 0)]
    # Acting before a layer is acting on the state after the one before it.
    before = getattr(settings, "placement", "after") == "before"
    if link.sites:
        return [(site.source, site.target - before) for site in link.sites]
    found, every = [], link.every or 0
    for c in range(1, n_target // every + 1):
        target = c * every - before
        if link.kind == "joint_attention":
            source = target
        elif link.source_depth:
            source = {"final": n_source, "embedding": 0}[link.source_depth]
        elif link.source_every:
            source = c * link.source_every
        else:
            # The same relative depth, rounded half up; the bare embedding only for an embedding.
            source = math.floor(Fraction(target * n_source, n_target) + Fraction(1, 2))
            source = max(source, 1) if target else source
        found.append((source, target))
    return found


def lay_out(row: Sequence[Run], spec: CompositionSpec, causal: Mapping[str, bool]) -> dict[str, list[Token]]:
    """Each tower's own tokens: packed, with their place in the whole sequence."""
    clocks = [{link.source, link.target} for link in spec.links if link.clock == "sync"]
    found: dict[str, list[Token]] = {}
    waiting: dict[str, list[tuple[int, int]]] = {}
    order, number = 0, 0
    while number < len(row):
        together = [number]
        if number + 1 < len(row) and {row[number].modality, row[number + 1].modality} in clocks:
            together.append(number + 1)
        step, n = len(together), len(row[number].tokens)
        for k in together:
            own = found.setdefault(row[k].tower, [])
            for segment, n_places in waiting.pop(row[k].tower, []):
                own += [Token(0, order, order, segment, j, inserted=True) for j in range(n_places)]
            # What is simultaneous is seen at once: a tick counts two orders, seen from the first, asking at the second.
            last = order + n - 1
            for j, token in enumerate(row[k].tokens):
                seen = order + step * j if causal[row[k].tower] else last
                own.append(Token(token, order + step * j + step - 1, seen, k, j))
        order += step * n
        for k in together:
            for link in spec.links:
                if at_embedding(link) and link.source == row[k].tower:
                    waiting.setdefault(link.target, []).append((k, places_of(link, len(row[k].tokens))))
        number += step
    return found


def seen_before(tokens: Sequence[Token], visible: Sequence[int]) -> Mask:
    """(T, S) whether a token comes strictly after the order from which each source token is visible."""
    return np.array([[v < token.order for v in visible] for token in tokens], dtype=np.bool_)


def segments_of(tokens: Sequence[Token]) -> dict[int, list[Token]]:
    """Return a tower's own segments by number, without inserted positions."""
    found: dict[int, list[Token]] = {}
    for token in tokens:
        if not token.inserted:
            found.setdefault(token.segment, []).append(token)
    return found
