"""The design's equation for one row, state by state: what certificate C11 holds a composition against.

Written from the design (sections 3 and 4) and the papers, without a module of those that it judges: it takes the spec,
tensors by their state-dict names, and the row's tokens. Slow, and as close to the formulas as it can be.

T counts a tower's tokens of the row, D is a width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from zippkit.evaluation.certificates.reference_layers import Array, Layers, Others, Token, Weights
from zippkit.evaluation.certificates.reference_layout import Run, lay_out, seen_before, site_depths
from zippkit.evaluation.certificates.reference_links import LinkEquations
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.link_spec import LinkSpec


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
            links = LinkEquations(self.weights, self.tokens)
            for link, i, source_depth, _ in acting[:n_links]:
                state = links.after(link, i, state, self.u(link.source, source_depth))
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
                others.append(
                    Others(keys, values, seen_before(self.tokens[tower], [t.visible for t in self.tokens[link.source]]))
                )
        return self.towers[tower].layer(depth, self.h(tower, depth - 1), self.places(tower), others)
