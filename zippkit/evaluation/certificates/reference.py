"""The design's equation for one row, state by state: what certificate C11 holds a composition against.

Written from the design (sections 3 and 4) and the papers, without a module of those that it judges: it takes the spec,
tensors by their state-dict names, and the row's tokens. Slow, and as close to the formulas as it can be.

T counts a tower's tokens of the row, S the source's, L latents, D is a width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from zippkit.evaluation.certificates.reference_layers import (
    EPS,
    Array,
    Layers,
    Mask,
    Others,
    Token,
    Weights,
    apply_rotary,
    attention,
    head,
    norm,
)
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.link_spec import LinkSpec

KINDS = ("gated_cross_attention", "cross_attention", "prefix", "resampler", "joint_attention")
"""Links whose equation is written here."""


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


@dataclass
class Reference:
    """Compute one row, state by state: u is the state at a depth before its links act, h after them."""

    spec: CompositionSpec
    towers: Mapping[str, Layers]
    weights: Weights
    row: Sequence[Run]
    multimodal: bool
    _u: dict[tuple[str, int], Array] = field(default_factory=dict)
    _h: dict[tuple[str, int, int | None], Array] = field(default_factory=dict)

    @cached_property
    def tokens(self) -> dict[str, list[Token]]:
        """Tokens of each tower, as the row's segments lay them out."""
        return lay_out(self.row, self.spec, {name: tower.causal for name, tower in self.towers.items()})

    @cached_property
    def sites(self) -> list[tuple[LinkSpec, int, int, int]]:
        """Link, number of the site, source depth, target depth, in spec order; those of both towers in the row."""
        return [
            (link, i, source, target)
            for link in self.spec.links
            if link.source in self.tokens and link.target in self.tokens
            for i, (source, target) in enumerate(
                site_depths(link, self.towers[link.source].n_layers, self.towers[link.target].n_layers)
            )
        ]

    def places(self, tower: str) -> list[int]:
        """Return position ids, as the tower's own position embedding counts them."""
        joint = any(link.kind == "joint_attention" and tower in (link.source, link.target) for link in self.spec.links)
        return [token.order if joint else t for t, token in enumerate(self.tokens[tower])]

    def u(self, tower: str, depth: int) -> Array:
        """(T, D) the state after so many layers, before any link of this depth rewrote it: what others read."""
        if (tower, depth) not in self._u:
            state = self._embedded(tower) if depth == 0 else self._after_layer(tower, depth)
            self._u[tower, depth] = state
        return self._u[tower, depth]

    def h(self, tower: str, depth: int, n_links: int | None = None) -> Array:
        """(T, D) the same behind the first so many links, or all."""
        if (tower, depth, n_links) not in self._h:
            state = self.u(tower, depth)
            acting = [
                site
                for site in self.sites
                if (site[0].target, site[3]) == (tower, depth) and site[0].kind != "joint_attention"
            ]
            for link, i, source_depth, _ in acting[:n_links]:
                state = self._linked(link, i, state, self.u(link.source, source_depth))
            self._h[tower, depth, n_links] = state
        return self._h[tower, depth, n_links]

    def logits(self, tower: str) -> Array:
        """(T, V) at every place of the tower."""
        return self.towers[tower].logits(self.h(tower, self.towers[tower].n_layers))

    def _embedded(self, tower: str) -> Array:
        tokens, projection = self.tokens[tower], self.spec.towers[tower].input_projection
        state = self.towers[tower].embed(tokens)
        if projection is not None and self.multimodal:
            name = f"input_projections.{tower}"
            if projection.residual:
                state = state + self.weights.mlp(f"{name}.mlp", state, projection.activation)
            else:
                state = self.weights.mlp(name, state, projection.activation, last=True)
        empty = self.towers[tower].empty(tokens)
        return np.stack([empty[t] if token.inserted else state[t] for t, token in enumerate(tokens)])

    def _after_layer(self, tower: str, depth: int) -> Array:
        others = []
        for link, _, _, target_depth in self.sites:
            if link.kind == "joint_attention" and (link.target, target_depth) == (tower, depth):
                before = self.h(link.source, depth - 1)
                keys, values = self.towers[link.source].keys(depth, before, self.places(link.source))
                others.append(Others(keys, values, self._mask(tower, [t.visible for t in self.tokens[link.source]])))
        return self.towers[tower].layer(depth, self.h(tower, depth - 1), self.places(tower), others)

    def _mask(self, tower: str, visible: Sequence[int]) -> Mask:
        """(T, S) who comes strictly after whom."""
        return np.array([[v < token.order for v in visible] for token in self.tokens[tower]], dtype=np.bool_)

    def _linked(self, link: LinkSpec, i: int, target_TD: Array, source_SD: Array) -> Array:
        settings: Any = link.settings
        name, tokens = f"links.{link.label}.{i}", self.tokens[link.source]
        if settings.norm_source:
            source_SD = norm(source_SD, self.weights(f"{name}.source_norm.weight"), EPS)
        if link.kind == "prefix":
            return self._with_places(link, target_TD, self._stacked(link, name, source_SD))
        read_SD = self.weights.mlp(f"{name}.projection", source_SD, link.projection.activation)
        if link.kind == "resampler":
            latents = {
                segment: self._latents(settings, name, read_SD[[tokens.index(t) for t in own]], own)
                for segment, own in self._segments(link.source).items()
            }
            if settings.output == "prefix":
                return self._with_places(link, target_TD, latents)
            visible = [own[-1].visible for own in self._segments(link.source).values() for _ in range(settings.queries)]
            read_LD, places = np.concatenate(list(latents.values())), [0.0] * len(visible)
            return self._gated(f"{name}.reader", link, settings.n_heads, "none", target_TD, read_LD, places, visible)
        places = [t.offset if settings.positions == "keys" else settings.pace * s for s, t in enumerate(tokens)]
        visible = [t.visible for t in tokens]
        return self._gated(name, link, settings.n_heads, settings.positions, target_TD, read_SD, places, visible)

    def _gated(
        self,
        name: str,
        link: LinkSpec,
        n_heads: int,
        positions: str,
        u_TD: Array,
        read_SD: Array,
        places: Sequence[float],
        visible: Sequence[int],
    ) -> Array:
        """``a = u + tanh(g_a) Attn(norm(u), F(s))``, ``h = a + tanh(g_f) FFN(norm(a))``; ``h = u`` where it is blind.

        Of a `cross_attention`, ``h = u + Attn(norm(u), F(s))``.
        """
        settings: Any = link.settings
        queries = self.weights.linear(f"{name}.query", norm(u_TD, self.weights(f"{name}.attention_norm.weight"), EPS))
        keys, values = (self.weights.linear(f"{name}.{part}", read_SD) for part in ("key", "value"))
        mask = self._mask(link.target, visible)
        found = []
        for i in range(n_heads):
            q, k = head(queries, i, n_heads), head(keys, i, n_heads)
            if positions != "none":
                k = apply_rotary(k, places, settings.rope_theta)
            if positions == "rotary":
                q = apply_rotary(q, range(len(q)), settings.rope_theta)
            found.append(attention(q, k, head(values, i, n_heads), mask))
        added = self.weights.linear(f"{name}.output", np.concatenate(found, axis=1))
        a = u_TD + self._gate(f"{name}.attention_gate") * added
        if link.kind != "cross_attention":
            inner = norm(a, self.weights(f"{name}.feed_forward_norm.weight"), EPS)
            a = a + self._gate(f"{name}.feed_forward_gate") * self.weights.mlp(f"{name}.feed_forward", inner, "gelu")
        return np.where(mask.any(axis=1, keepdims=True), a, u_TD)

    def _gate(self, name: str) -> Array | float:
        return np.tanh(self.weights(name)) if self.weights.has(name) else 1.0

    def _segments(self, tower: str) -> dict[int, list[Token]]:
        """The tower's own segments, without what was inserted."""
        found: dict[int, list[Token]] = {}
        for token in self.tokens[tower]:
            if not token.inserted:
                found.setdefault(token.segment, []).append(token)
        return found

    def _stacked(self, link: LinkSpec, name: str, source_SD: Array) -> dict[int, Array]:
        """For each segment, its tokens k by k side by side, with zeros behind the last, projected."""
        settings: Any = link.settings
        found, tokens = {}, self.tokens[link.source]
        for segment, own in self._segments(link.source).items():
            states = [source_SD[tokens.index(token)] for token in own]
            states += [np.zeros(source_SD.shape[1])] * (-len(states) % settings.stack)
            rows = [np.concatenate(states[at : at + settings.stack]) for at in range(0, len(states), settings.stack)]
            found[segment] = self.weights.mlp(f"{name}.projection", np.stack(rows), link.projection.activation)
        return found

    def _with_places(self, link: LinkSpec, target_TD: Array, put: Mapping[int, Array]) -> Array:
        """Return the states that links add at inserted positions."""
        out = target_TD.copy()
        for t, token in enumerate(self.tokens[link.target]):
            if token.inserted and token.segment in put:
                out[t] = out[t] + put[token.segment][token.offset]
        return out

    def _latents(self, settings: Any, name: str, read_SD: Array, own: Sequence[Token]) -> Array:
        """(queries, D) what the learned queries have become after one segment of the source."""
        x = self.weights(f"{name}.queries")
        places = [token.offset for token in own] if settings.positions == "keys" else None
        for j in range(settings.depth):
            layer = f"{name}.layers.{j}"
            if settings.design == "perceiver":
                inner = self._normed(f"{layer}.attention", x)
                x = x + self._look(settings, f"{layer}.attention", inner, [(read_SD, places), (inner, None)])
            else:
                inner = self._normed(f"{layer}.self_attention", x)
                x = x + self._look(settings, f"{layer}.self_attention", inner, [(inner, None)])
                inner = self._normed(f"{layer}.cross_attention", x)
                x = x + self._look(settings, f"{layer}.cross_attention", inner, [(read_SD, places)])
            inner = self._normed(f"{layer}.feed_forward", x)
            x = x + self.weights.mlp(f"{layer}.feed_forward", inner, "gelu")
        return norm(x, self.weights(f"{name}.norm.weight"), EPS)

    def _normed(self, part: str, x: Array) -> Array:
        return norm(x, self.weights(f"{part}_norm.weight"), EPS)

    def _look(
        self, settings: Any, name: str, latents_LD: Array, states: Sequence[tuple[Array, Sequence[int] | None]]
    ) -> Array:
        """Return what the latents' attention reads from these states; keys are rotated where positions are given."""
        queries, n, found = self.weights.linear(f"{name}.query", latents_LD), settings.n_heads, []
        for i in range(n):
            keys, values = [], []
            for state, places in states:
                key = head(self.weights.linear(f"{name}.key", state), i, n)
                keys.append(key if places is None else apply_rotary(key, places, settings.rope_theta))
                values.append(head(self.weights.linear(f"{name}.value", state), i, n))
            k, v = np.concatenate(keys), np.concatenate(values)
            found.append(attention(head(queries, i, n), k, v, np.ones((len(queries), len(k)), dtype=np.bool_)))
        return self.weights.linear(f"{name}.output", np.concatenate(found, axis=1))
