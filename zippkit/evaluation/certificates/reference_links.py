"""The equations of links for one row: what a site makes of the target's states, given the source's.

T counts the target's tokens of the row, S the source's, L latents, D is a width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zippkit.evaluation.certificates.reference_layers import (
    EPS,
    Array,
    Token,
    Weights,
    apply_rotary,
    attention,
    head,
    norm,
)
from zippkit.evaluation.certificates.reference_layout import seen_before, segments_of
from zippkit.spec.link_spec import LinkSpec

KINDS = ("gated_cross_attention", "cross_attention", "prefix", "resampler", "joint_attention")
"""Links whose equation is written here."""


@dataclass(frozen=True)
class LinkEquations:
    """Links of every kind but joint attention, which acts inside the towers' layers."""

    weights: Weights
    tokens: Mapping[str, list[Token]]
    """Of each tower, in the row."""

    def after(self, link: LinkSpec, i: int, target_TD: Array, source_SD: Array) -> Array:
        """(T, D) the target's states after site number ``i`` of a link."""
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
                for segment, own in segments_of(self.tokens[link.source]).items()
            }
            if settings.output == "prefix":
                return self._with_places(link, target_TD, latents)
            visible = [
                own[-1].visible
                for own in segments_of(self.tokens[link.source]).values()
                for _ in range(settings.queries)
            ]
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
        mask = seen_before(self.tokens[link.target], visible)
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

    def _stacked(self, link: LinkSpec, name: str, source_SD: Array) -> dict[int, Array]:
        """For each segment, its tokens k by k side by side, with zeros behind the last, projected."""
        settings: Any = link.settings
        found, tokens = {}, self.tokens[link.source]
        for segment, own in segments_of(self.tokens[link.source]).items():
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
