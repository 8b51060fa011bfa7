"""C11: the composition computes the design's equation, by a small reference of its own (`reference.py`).

C1, C2 and C4 compare the model with itself; what a site reads, by which places, and in which order links act, only
another implementation can tell. Towers of another kind than `decoder` are stepped by their own layers, a row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from zippkit.batch.batch import Batch, Segment
from zippkit.composition import Composition
from zippkit.evaluation.certificates.decoding import ALLOWED
from zippkit.evaluation.certificates.probe import (
    draws_for,
    orders,
    place_of,
    position,
    to_device,
    with_zero_inits_randomized,
)
from zippkit.evaluation.certificates.reference import Reference
from zippkit.evaluation.certificates.reference_layers import Array, Decoder, Layers, Others, Token, Weights
from zippkit.evaluation.certificates.reference_layout import Run
from zippkit.evaluation.certificates.reference_links import KINDS
from zippkit.evaluation.certificates.report import RefutedError
from zippkit.model.added_vocabulary import AddedVocabulary
from zippkit.model.run_tower import own_mask
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.plan import Op, Plan, Wanted
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import Frame


@torch.no_grad()
def computes_the_equation(zipped: Composition) -> str:
    """Certificate C11.

    Raises:
        RefutedError: names a position whose logits are others, and the first operation by which they are.
    """
    missing = _missing(zipped.spec)
    if missing:
        return f"not tried: {missing}"
    zipped = replace(zipped, model=with_zero_inits_randomized(zipped.model).double())
    draws, n_positions, worst = draws_for(zipped), 0, 0.0
    layouts = [*([name] for name in zipped.graph.towers), *orders(zipped)]
    for names in layouts:
        off, n_tokens = compare(zipped, draws.row(names), len(set(names)) > 1)
        worst, n_positions = max(worst, off), n_positions + n_tokens
    foreign = [f"{name} ({tower.kind})" for name, tower in zipped.spec.towers.items() if tower.kind != "decoder"]
    told = f"; the layers of {', '.join(foreign)} are their own" if foreign else ""
    return f"{n_positions} positions of {len(layouts)} rows, within {worst:.1e} of the largest logit{told}"


@torch.no_grad()
def compare(zipped: Composition, row: Sequence[Segment], multimodal: bool) -> tuple[float, int]:
    """Compute one row both with the model, in float64 and evaluation mode, and by the equation.

    Returns:
        The largest difference of two logits, over the largest logit, and how many positions were compared.

    Raises:
        RefutedError: a difference is too large.
    """
    case = _Case(zipped, row, multimodal)
    return case.demand_equal(), case.batch.n_tokens


def _missing(spec: CompositionSpec) -> str:
    """Return the parts of a spec that the reference has no equation for."""
    for name, tower in spec.towers.items():
        if tower.parts:
            return f"the reference knows no part {sorted(tower.parts)[0]!r} of {name}"
    for link in spec.links:
        if link.kind not in KINDS:
            return f"the reference knows no link of kind {link.kind!r}"
        for name in (link.source, link.target):
            if link.kind == "joint_attention" and spec.towers[name].kind != "decoder":
                return f"the reference shares no attention of a tower of kind {spec.towers[name].kind!r}"
    return ""


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)


class _Case:
    """One row by itself."""

    def __init__(self, zipped: Composition, row: Sequence[Segment], multimodal: bool) -> None:
        self.model, self.batch = zipped.model, to_device(zipped, [row], multimodal)
        state = self.model.state_dict()
        weights = Weights({name: _array(t) for name, t in state.items() if t.is_floating_point()}, zipped.spec)
        layers: dict[str, Layers] = {}
        for name, spec in zipped.spec.towers.items():
            native = spec.kind == "decoder"
            if native:
                layers[name] = Decoder(name, zipped.graph.towers[name], weights)
            elif name in self.batch.towers:
                layers[name] = _Own(self.model, name, self.batch)
        self.reference = Reference(zipped.spec, layers, weights, _runs(zipped, row), multimodal)
        self.plan = self.model.plan.prune(Wanted(heads=set(self.batch.towers), sees=self.batch.sees))

    def demand_equal(self) -> float:
        """The largest difference, over the largest logit.

        Raises:
            RefutedError: it is too large.
        """
        found, worst = self.model.run(self.plan, self.batch.towers, self.batch.multimodal), 0.0
        for name, tokens in self.batch.towers.items():
            expected, logits = self.reference.logits(name), _array(found[name][0])
            if not np.isfinite(logits).all():
                raise RefutedError(f"the logits of {name} are not finite, so nothing can be shown")
            off = _off(logits, expected)
            worst = max(worst, float(off.max()))
            if not worst <= ALLOWED:
                place = position(name, tokens, 0, int((off > ALLOWED).argmax()))
                segments = " -> ".join(run.modality for run in self.reference.row)
                raise RefutedError(
                    f"in a row {segments}, {place} is off by {float(off.max()):.1e} of the largest logit, first at "
                    f"{self._culprit()}; at most {ALLOWED:.1e} was expected"
                )
        return worst

    def _culprit(self) -> str:
        """Run ever more of the plan, with a head right behind it, until it is off."""
        body = [op for op in self.plan.ops if op.kind != "head"]
        for n, op in enumerate(body, start=1):
            if op.kind not in ("start", "layer", "read") or (op.kind == "read" and op.inside):
                continue
            part = Plan((*body[:n], Op("head", op.tower, op.depth)), ())
            logits = self.model.run(part, self.batch.towers, self.batch.multimodal)[op.tower][0]
            state = self.reference.h(op.tower, op.depth, self._n_links(op))
            if not _off(_array(logits), self.reference.towers[op.tower].logits(state)).max() <= ALLOWED:
                return place_of(op)
        return "a head"

    def _n_links(self, op: Op) -> int:
        """Return the number of links that have acted on an operation's output."""
        if op.site is None:
            return 0
        here = [
            (link.label, i)
            for link, i, _, depth in self.reference.sites
            if (link.target, depth) == (op.tower, op.depth) and link.kind != "joint_attention"
        ]
        site = (op.site.link, op.site.index)
        return here.index(site) + 1 if site in here else 0


def _off(logits: Array, expected: Array) -> Array:
    """(T,) by how much each position is off, over the largest logit."""
    if logits.shape != expected.shape:
        raise RefutedError(f"{logits.shape[0]} x {logits.shape[1]} logits, where {expected.shape} were expected")
    return np.asarray(np.abs(logits - expected).max(axis=1) / max(np.abs(expected).max(), 1e-6), dtype=np.float64)


def _runs(zipped: Composition, row: Sequence[Segment]) -> list[Run]:
    """The row in its towers' own ids."""
    hosts: dict[str, tuple[str, int, Frame | None]] = {}
    for host, tower in zipped.spec.towers.items():
        config = zipped.graph.towers[host]
        hosts[host], first = (host, 0, config.frame), config.vocab_size or 0
        for name, added in tower.extend_vocabulary.items():
            hosts[name], first = (host, first, added.frame), first + added.size
    runs = []
    for segment in row:
        host, first, frame = hosts[segment.tower]
        config = zipped.graph.towers[host]
        if config.continuous or frame is None:
            runs.append(Run(segment.tower, host, [0] * config.n_states(np.asarray(segment.tokens, np.float32))))
        else:
            tokens = [frame.begin, *(int(token) for token in segment.tokens), frame.end]
            runs.append(Run(segment.tower, host, [first + token for token in tokens]))
    return runs


class _Own:
    """A tower of another kind, stepped by its own layers."""

    def __init__(self, model: ZippedModel, name: str, batch: Batch) -> None:
        self._tower, self._inputs = model.tower(name), batch.towers[name]
        known = name in model.groups["vocabularies"]
        self._added = cast("AddedVocabulary", model.groups["vocabularies"][name]) if known else None
        config = self._tower.config
        self.n_layers, self.causal = config.n_layers, config.causal
        mask = own_mask(self._tower, self._inputs)
        self._embedded, self._context = self._tower.start(model.known(name, self._inputs), mask, None)

    def _tensor(self, x: Array) -> Tensor:
        return torch.from_numpy(x)[None].to(self._embedded)

    def embed(self, tokens: Sequence[Token]) -> Array:
        del tokens
        hidden = self._embedded
        if self._added is not None:
            hidden = self._added.start(self._tower, self._inputs, hidden)
        return _array(hidden[0])

    def empty(self, tokens: Sequence[Token]) -> Array:
        del tokens
        return _array(self._tower.placed(torch.zeros_like(self._embedded), self._inputs)[0])

    def layer(self, depth: int, x_TD: Array, places: Sequence[int], others: Sequence[Others]) -> Array:
        del places, others
        return _array(self._tower.layer(depth - 1, self._tensor(x_TD), self._context)[0])

    def keys(self, depth: int, x_TD: Array, places: Sequence[int]) -> tuple[Array, Array]:
        raise NotImplementedError("only the native decoder's attention is shared here")

    def logits(self, x_TD: Array) -> Array:
        hidden = self._tensor(x_TD)
        logits = self._tower.head(hidden)
        return _array((logits if self._added is None else self._added.head(logits, hidden))[0])
