"""Probes: copies of a model in which nothing is the identity any more, and random rows in every order of towers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from zippkit.batch.batch import Batch, Features, Segment, TowerBatch
from zippkit.composition import Composition
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.graph import LinkSite
from zippkit.plan.plan import Op, Plan
from zippkit.plan.sequence_layout import Modality, SequenceLayout, turns
from zippkit.spec.kinds import TowerConfig

DRAWS = 8
"""Attempts of a probe before it reports no effect: a single draw may hit an inactive ReLU or a token without effect."""


@torch.no_grad()
def jitter(parameters: Iterable[nn.Parameter], seed: int = 0) -> None:
    """Move every entry by an amount that is never near 0 and keeps states at their size."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        size = parameter.shape[1:].numel() ** -0.5 if parameter.dim() > 1 else 0.3
        noise = 2 * torch.rand(parameter.shape, generator=generator) - 1
        noise += noise.sign() / 2
        parameter.add_((size * noise).to(parameter))


def randomize_zero_inits(model: nn.Module, seed: int = 0) -> None:
    """Open every gate and fill every zero output, so that whatever can leak does.

    Moves the trained parameters of links and input projections, and those of towers that are all zeros. What is
    frozen stays as it is: the certificates are about the user's own weights.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    jitter((p for name, p in trained if not name.startswith("towers.") or not p.any()), seed)


def with_zero_inits_randomized(model: ZippedModel) -> ZippedModel:
    """Copy a model for probing: in evaluation mode, with its zero initialisations randomised.

    Tokens of the copy are kept apart to the last bit (`Tower.apart`), and a tower without a head hands on its states
    (see `with_states`).
    """
    model = copy.deepcopy(model).eval()
    randomize_zero_inits(model)
    for name in model.towers:
        tower = model.tower(name)
        tower.apart()
        if not tower.config.predicts:
            object.__setattr__(tower, "head", _states)
            model.plan = _ending_in(model.plan, name)
    return model


def kept_apart(model: ZippedModel) -> str:
    """Say how running a randomized model differs from usual, as the end of a sentence."""
    said = {name: words for name in model.towers if (words := model.tower(name).apart())}
    return "".join(f"; {name} ran {words}" for name, words in said.items())


def _states(hidden: Tensor) -> Tensor:
    return hidden


def _ending_in(plan: Plan, tower: str) -> Plan:
    """The plan with a head on a tower that has none."""
    last = [op for op in plan.ops if op.tower == tower and op.kind in ("start", "layer", "read")][-1]
    head = Op("head", tower, last.depth)
    return Plan((*plan.ops, head), (*plan.needs, (head, frozenset({last}))))


def with_states(model: ZippedModel, batch: Batch) -> Batch:
    """The batch, asking a randomized model for the states of its towers without a head too."""
    headless = [name for name in batch.towers if not model.tower(name).config.predicts]
    return replace(batch, outputs=(*batch.outputs, *headless))


class Draws:
    """Random tokens and rows, the same for the same seed, without touching the global random state."""

    def __init__(self, towers: Mapping[str, TowerConfig], seed: int = 0, layout: SequenceLayout | None = None) -> None:
        self.towers, self.layout = towers, layout or SequenceLayout()
        self.modalities = self.layout.modalities(towers)
        self._generator = torch.Generator().manual_seed(seed)
        self._pools = {name: _inner_ids(each) for name, each in self.modalities.items() if not self.is_continuous(name)}

    def is_continuous(self, name: str) -> bool:
        """Whether a modality is fed with waveforms or pixels."""
        return self.towers[self.modalities[name].tower].continuous

    def is_predicted(self, name: str) -> bool:
        """Whether the modality's tower has a head."""
        return self.towers[self.modalities[name].tower].predicts

    def _below(self, n: int, shape: Sequence[int] = ()) -> Tensor:
        return torch.randint(n, tuple(shape), generator=self._generator)

    def row(self, names: Sequence[str]) -> list[Segment]:
        """A segment of one to three tokens for each modality that is named; left out where it is too long.

        Neighbours with one clock are of one length.
        """
        used: Counter[str] = Counter()
        segments: list[Segment] = []
        for turn in turns(names, self.layout):
            n = 1 + int(self._below(3))
            drawn = [self._segment(name, min([n, *(self._room(each, used) for each in turn)])) for name in turn]
            for segment, n_states in drawn:
                if segment is not None and n_states <= self._room(segment.tower, used) + 2:
                    segments.append(segment)
                    self._use(segment.tower, n_states, used)
        return segments

    def _segment(self, name: str, n: int) -> tuple[Segment | None, int]:
        """A segment of ``n`` tokens, and how many states it makes; None where there is no room."""
        config = self.towers[self.modalities[name].tower]
        if config.continuous:
            inputs = config.example_inputs(max(n, 1), seed=int(self._below(2**31)))
            return Segment(name, inputs), config.n_states(inputs)
        if n < 0:
            return None, 0
        pool = self._pools[name]
        return Segment(name, pool[self._below(len(pool), [n])]), n + 2

    def _room(self, name: str, used: Counter[str]) -> int:
        """Return how many tokens fit into the tower's context besides begin and end."""
        tower = self.modalities[name].tower
        limit = self.towers[tower].max_len
        taken = sum(used.values()) if tower in self.layout.shared else used[tower]
        return 10_000 if limit is None else limit - taken - 2

    def _use(self, name: str, n_states: int, used: Counter[str]) -> None:
        tower = self.modalities[name].tower
        used[tower] += n_states
        for insert in self.layout.inserts:
            if insert.source == tower:
                used[insert.target] += insert.n_slots(n_states)

    def changed(self, batch: Batch, where: Mapping[str, Tensor]) -> Batch:
        """The batch with another token wherever a tower's (B, T) mask says so."""
        towers = {
            name: self._changed(name, tokens, where[name]) for name, tokens in batch.towers.items() if name in where
        }
        return replace(batch, towers=batch.towers | towers)

    def _changed(self, name: str, tokens: TowerBatch, where: Tensor) -> TowerBatch:
        if tokens.features is not None:
            return replace(tokens, features=self._other_inputs(tokens, tokens.features, where))
        return replace(tokens, tokens=torch.where(where, self._others(name, tokens.tokens), tokens.tokens))

    def _other_inputs(self, tokens: TowerBatch, features: Features, where: Tensor) -> Features:
        """Draw other inputs for every segment of which ``where`` marks a state.

        In a row of which ``where`` marks padding, values beyond the segments' true lengths change.
        """
        values, there = features.values, real(tokens)
        noise = (2 * torch.rand(values.shape, generator=self._generator) - 1).to(values)
        inside = torch.arange(values.shape[1], device=values.device) < features.lengths[:, None]
        padded = there & (where & ~there).any(dim=1, keepdim=True)
        changed = torch.zeros_like(inside)
        changed[features.entry[where & there]] |= inside[features.entry[where & there]]
        changed[features.entry[padded]] |= ~inside[features.entry[padded]]
        return replace(
            features, values=torch.where(changed.view(*changed.shape, *[1] * (values.dim() - 2)), noise, values)
        )

    def _others(self, tower: str, tokens: Tensor) -> Tensor:
        pool = self._pools[tower]
        at = self._below(len(pool), tokens.shape)
        old, frame = tokens.cpu(), self.towers[tower].frame
        new = torch.where(pool[at] == old, pool[(at + 1) % len(pool)], pool[at])
        # A vocabulary of one token besides the frame leaves only the frame's.
        return (torch.where(new == old, frame.end, new) if frame else new).to(tokens.device)


def _inner_ids(modality: Modality) -> Tensor:
    """Every id but begin and end; 256 of them where there is no vocabulary."""
    ids = list(range(modality.vocab_size or 256))
    frame = (modality.frame.begin, modality.frame.end) if modality.frame else ()
    return torch.tensor([i for i in ids if i not in frame] or ids)


def draws_for(zipped: Composition, seed: int = 0) -> Draws:
    """Random rows for a composition."""
    return Draws(zipped.graph.towers, seed, zipped.graph.layout)


def layouts(towers: Sequence[str], rounds: int = 2) -> list[list[str]]:
    """Orders of segments: each tower first, and every tower both before and after every other."""
    return [[*towers[i:], *towers[:i]] * rounds for i in range(len(towers))]


def mixed_batch(zipped: Composition, draws: Draws) -> Batch:
    """Return a unimodal row for each tower, in the towers' order, then a multimodal row for each layout."""
    layouts = [*([name] for name in zipped.graph.towers), *orders(zipped)]
    rows = [draws.row(names) for names in layouts]
    return to_device(zipped, rows, [len(set(names)) > 1 for names in layouts])


def orders(zipped: Composition, rounds: int = 2) -> list[list[str]]:
    """`layouts` of everything that a segment can be of."""
    return layouts(list(zipped.graph.modalities), rounds)


def batches(zipped: Composition, seed: int = 0) -> list[Batch]:
    """Small batches with a loss on every tower: each tower alone, each linked direction, and all of them mixed."""
    draws = draws_for(zipped, seed)
    directions = dict.fromkeys((site.source, site.target) for site in zipped.graph.sites)
    every = [*([name] for name in draws.modalities), *directions]
    # A batch of nothing but encoders' inputs asks for no loss.
    every = [layout for layout in every if any(draws.is_predicted(name) for name in layout)]
    alike = [to_device(zipped, [draws.row(layout) for _ in range(2)], len(set(layout)) > 1) for layout in every]
    return [*alike, mixed_batch(zipped, draws)]


def learn(zipped: Composition, model: ZippedModel, batch: Batch) -> None:
    """Add one batch's gradients; none where everything that it runs is frozen."""
    loss = zipped.loss(model(batch), batch)["total"]
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]


def to_device(
    zipped: Composition, rows: Sequence[Sequence[Segment]], multimodal: bool | Sequence[bool] = True
) -> Batch:
    """Rows as a batch where the model is."""
    return zipped.collate(rows, multimodal=multimodal).to(next(zipped.model.parameters()).device)


def real(tokens: TowerBatch) -> Tensor:
    """(B, T) bool: not padding."""
    return tokens.order >= 0


def knows(tokens: TowerBatch, causal: bool) -> Tensor:
    """(B, T) the largest order of which a token may know: its own, or its segment's last where the tower is not causal.

    From orders and segments alone, so that a batch's own ``visible`` is not believed.
    """
    if causal:
        return tokens.order
    same_BTT = tokens.segment[:, :, None] == tokens.segment[:, None, :]
    return torch.where(same_BTT, tokens.order[:, None, :], -1).amax(dim=-1)


def position(tower: str, tokens: TowerBatch, row: int, index: int) -> str:
    """A token in words."""
    return f"{tower} position {index} (order {int(tokens.order[row, index])})"


def place_of(op: Op) -> str:
    """An operation in words."""
    if op.site is not None:
        return f"link {op.site.link}.{op.site.index}"
    return (
        f"layer {op.depth} of {op.tower}"
        if op.kind in ("layer", "project")
        else f"the embedding or the head of {op.tower}"
    )


def acting_sites(plan: Plan) -> list[LinkSite]:
    """The sites that the plan runs, in its order."""
    return [op.site for op in plan.ops if op.kind == "read" and op.site is not None]


def through(plan: Plan, target: str, sites: Collection[LinkSite] = ()) -> Plan:
    """A plan for one tower's logits in which only these sites act."""
    towers = {target, *(site.source for site in sites)}
    kept = (
        op
        for op in plan.ops
        if (
            op.site in sites
            if op.site
            else op.tower in towers and op.kind != "pool" and (op.kind != "head" or op.tower == target)
        )
    )
    return Plan(tuple(kept), ())
