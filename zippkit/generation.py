"""Generation: finish each wanted segment token by token, with caches, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from zippkit.batch import IGNORE, Batch, Segment, TowerBatch
from zippkit.composition import Composition
from zippkit.config import Frame
from zippkit.errors import DataError, ZippkitError, did_you_mean
from zippkit.layout import Modality, turns
from zippkit.model import Decoding
from zippkit.plan import Plan


@dataclass
class _Rows:
    """Where each row stands."""

    order: Tensor
    """(B,) place of the next token in the whole sequence."""
    segment: Tensor
    """(B,) number of the next segment."""
    positions: dict[str, Tensor]
    """For each tower that advances, (B,) place of its next token among its own."""
    capacity: dict[str, int]
    """For each tower that advances, slots of its cache."""


def generate(
    zipped: Composition, prompt: Sequence[Segment], outputs: Sequence[str], max_tokens: int = 256
) -> list[Segment]:
    """Continue one prompt by a segment of each modality in ``outputs``; see `generate_batch`."""
    return generate_batch(zipped, [prompt], outputs, max_tokens)[0]


@torch.inference_mode()
def generate_batch(
    zipped: Composition, prompts: Sequence[Sequence[Segment]], outputs: Sequence[str], max_tokens: int = 256
) -> list[list[Segment]]:
    """Continue each prompt by one segment of each modality in ``outputs``, in that order, taking the likeliest token.

    Only the tower whose turn it is advances; what it reads of the others was computed once. Neighbours with one clock
    (`clock: sync`) take their turn together, and end together. A segment ends at its end id, after ``max_tokens``
    tokens, or where the tower's ``max_len`` leaves no room for more. A row's answer does not depend on the rows beside
    it.

    Args:
        zipped: the composition.
        prompts: for each row, the segments that are given; may be empty.
        outputs: towers to generate with, or modalities that they host.
        max_tokens: longest segment, begin and end ids not counted.

    Returns:
        For each row, its new segments.

    Raises:
        ZippkitError: an output that is no modality, or a tower that cannot generate.
        DataError: a prompt that a tower cannot take, or that leaves it no room to go on, or that ends with half of what
            two towers say at once.
    """
    if max_tokens < 0:
        raise ZippkitError(f"max_tokens: expected 0 or more, got {max_tokens}")
    _check_outputs(zipped, outputs)
    if not prompts or not outputs:
        return [[] for _ in prompts]
    for i, prompt in enumerate(prompts):
        _check_turns(zipped, f"prompt {i}", [segment.tower for segment in prompt], outputs)
    zipped.model.eval()
    return _Generation(zipped, prompts, outputs, max_tokens).run()


def _check_outputs(zipped: Composition, outputs: Sequence[str]) -> None:
    modalities = zipped.graph.modalities
    for name in outputs:
        if name not in modalities:
            raise ZippkitError(f"outputs: no tower is called {name!r}{did_you_mean(name, modalities)}")
        if not zipped.graph.towers[modalities[name].tower].causal:
            raise ZippkitError(f"outputs: {name!r} is not causal, so it cannot generate")
        if modalities[name].frame is None:
            raise ZippkitError(f"{name} has no begin and end ids, so it cannot generate")


def _check_turns(zipped: Composition, where: str, given: Sequence[str], outputs: Sequence[str]) -> None:
    layout = zipped.graph.layout
    if turns([*given, *outputs], layout) != [*turns(given, layout), *turns(outputs, layout)]:
        raise DataError(
            f"{where} ends with a segment of {given[-1]!r}, and {outputs[0]!r} next to it would be simultaneous "
            "(`clock: sync`); expected both in the prompt, or both in the outputs"
        )


class _Generation:
    """One call of `generate_batch`."""

    def __init__(
        self, zipped: Composition, prompts: Sequence[Sequence[Segment]], outputs: Sequence[str], max_tokens: int
    ) -> None:
        self.graph, self.model, self.plan = zipped.graph, zipped.model, zipped.plan
        self.prompts, self.max_tokens = prompts, max_tokens
        self.modalities = self.graph.modalities
        self.turns = turns(outputs, self.graph.layout)
        self.decoding = Decoding()
        kinds = [{segment.tower for segment in prompt} | set(outputs) for prompt in prompts]
        flags = [len(kind) > 1 for kind in kinds]
        device = next(self.model.parameters()).device
        self.multimodal: Tensor | bool = flags[0] if len(set(flags)) == 1 else torch.tensor(flags, device=device)
        numbers = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.rows = _Rows(torch.zeros_like(numbers), numbers, {}, {})
        towers = self._advancing(self.turns)
        batch = zipped.collate(prompts, then=tuple(dict.fromkeys(towers))).to(device) if any(prompts) else None
        self._prefill(batch, towers)

    def _advancing(self, wanted: Sequence[Sequence[str]]) -> list[str]:
        """The towers of some turns, once for each segment."""
        return [self.modalities[name].tower for turn in wanted for name in turn]

    def run(self) -> list[list[Segment]]:
        """Every turn, one after the other."""
        results: list[list[Segment]] = [[] for _ in self.prompts]
        for i, turn in enumerate(self.turns):
            segments = self._segments(turn, self.turns[i:])
            for row, result in enumerate(results):
                result.extend(Segment(name, segments[name][row]) for name in turn)
        return results

    def _prefill(self, batch: Batch | None, advancing: Sequence[str]) -> None:
        """Run the prompts once: fill the caches of the towers that go on, and the memories that they read."""
        towers, rows = batch.towers if batch else {}, self.rows
        for inputs in towers.values():
            rows.order = torch.maximum(rows.order, inputs.order.amax(dim=1) + 1)
        for name in dict.fromkeys(advancing):
            used, n_turns = towers[name].tokens.shape[1] if name in towers else 0, advancing.count(name)
            limit = self.graph.towers[name].max_len
            n_slots = used + n_turns * (self.max_tokens + 2) + self._places(name, advancing)
            if limit is not None:
                n_slots = min(n_slots, limit)
                self._check_room(name, used, limit, advancing)
            rows.capacity[name] = n_slots
            self.decoding.caches[name] = self.model.tower(name).new_cache(len(self.prompts), n_slots)
            self.decoding.n_slots[name] = used
            there = (towers[name].order >= 0).sum(dim=1) if name in towers else torch.zeros_like(rows.order)
            rows.positions[name] = there
        if batch is not None:
            writes = {site for site in self.graph.sites if site.source in towers and site.target in advancing}
            layers = set(advancing) & set(towers)
            plan = self.plan.prune(heads=set(), sees=batch.sees, writes=writes, layers=layers)
            self.model.run(plan, towers, self.multimodal, self.decoding)
            self.model.commit(self.decoding)

    def _places(self, name: str, advancing: Sequence[str]) -> int:
        """The most places that links will insert into a tower's sequence for segments that are yet to come."""
        inserts = [insert for insert in self.graph.layout.inserts if insert.target == name]
        return sum(advancing.count(insert.source) * insert.places(self.max_tokens + 2) for insert in inserts)

    def _check_room(self, name: str, used: int, limit: int, advancing: Sequence[str]) -> None:
        n_turns = self._turns_left(name, advancing)
        if name in self.graph.layout.shared:
            used = int(self.rows.order.max())
        if used + 2 * n_turns > limit:
            raise DataError(
                f"{name}: the prompt has {used} tokens, and begin and end of {n_turns} new segments are to "
                f"follow; the tower takes at most {limit}"
            )

    def _turns_left(self, name: str, advancing: Sequence[str]) -> int:
        """How many segments are still to be framed within a tower's longest sequence: its own; or where towers share
        their attention, so that it counts the tokens of all, everything up to its own last one."""
        if name not in self.graph.layout.shared:
            return advancing.count(name)
        return len(advancing) - list(reversed(advancing)).index(name)

    def _room(self, name: str, advancing: Sequence[str]) -> Tensor:
        """(B,) longest next segment, so that the tower can still frame each segment that is to come."""
        room = torch.full_like(self.rows.order, self.max_tokens)
        limit = self.graph.towers[name].max_len
        if limit is None:
            return room
        used = self.rows.order if name in self.graph.layout.shared else self.rows.positions[name]
        return torch.minimum(room, limit - 2 * self._turns_left(name, advancing) - used)

    def _segments(self, turn: Sequence[str], to_come: Sequence[Sequence[str]]) -> dict[str, list[list[int]]]:
        """Generate one segment in every row with each tower of this turn; ``to_come`` are this turn and the rest."""
        towers, later = self._advancing([turn]), self._advancing(to_come[1:])
        writes = {site for site in self.graph.sites if site.source in towers and site.target in later}
        together = {(one, other) for one in towers for other in towers if one != other}
        given = {s for s in self.decoding.memories if s.target in towers and (s.target, s.source) not in together}
        plan = self.plan.prune(heads=set(towers), sees=together, writes=writes, given=given)
        rooms = [self._room(name, self._advancing(to_come)) for name in towers]
        room = torch.stack(rooms).amin(dim=0)
        # The end ids are run too where somebody reads them later.
        feed_end = bool(writes) or any(name in later for name in towers)
        found = self._tokens(turn, plan, room, feed_end)
        self.model.commit(self.decoding)
        lengths = torch.tensor([len(row) for row in found[turn[0]]], device=room.device)
        for i, name in enumerate(towers):
            self._insert(name, self.rows.segment + i, lengths, later)
        self.rows.segment = self.rows.segment + len(turn)
        return found

    def _tokens(self, turn: Sequence[str], plan: Plan, room: Tensor, feed_end: bool) -> dict[str, list[list[int]]]:
        """The tokens of one segment in every row, for each modality of this turn, without begin and end."""
        frames = {name: _frame(self.modalities[name]) for name in turn}
        tokens = {name: torch.full_like(room, begin) for name, (begin, _) in frames.items()}
        active = torch.ones_like(room, dtype=torch.bool)
        found: dict[str, list[Tensor]] = {name: [] for name in turn}
        for step in range(int(room.max()) + 2):
            inputs = {
                self.modalities[name].tower: self._next_inputs(name, i, step, tokens[name], active, len(turn))
                for i, name in enumerate(turn)
            }
            for name in inputs:
                self.decoding.n_slots[name] = min(self.decoding.n_slots[name] + 1, self.rows.capacity[name])
            logits = self.model.run(plan, inputs, self.multimodal, self.decoding)
            self.rows.order = self.rows.order + len(turn) * active
            for name in inputs:
                self.rows.positions[name] = self.rows.positions[name] + active
            # The end id was fed in this step: the row is complete.
            ended = torch.stack([tokens[name] == end for name, (_, end) in frames.items()]).any(dim=0)
            active = active & ~ended
            chosen = {
                name: _likeliest(logits[self.modalities[name].tower][:, -1], self.modalities[name]) for name in turn
            }
            stop = torch.stack([chosen[name] == end for name, (_, end) in frames.items()]).any(dim=0)
            stop = stop | (step >= room) | ~active
            for name, (_, end) in frames.items():
                tokens[name] = torch.where(stop, end, chosen[name])
                found[name].append(tokens[name])
            if not (active if feed_end else active & ~stop).any():
                break
        # An end id that nobody reads is not run, but has its place in the whole sequence.
        self.rows.order = self.rows.order + len(turn) * active
        return {name: _cut(found[name], frames[name][1], self.modalities[name].first_id) for name in turn}

    def _next_inputs(
        self, name: str, number: int, step: int, tokens: Tensor, active: Tensor, n_together: int
    ) -> TowerBatch:
        """One token a row; a row that is complete sees nothing, is seen by nobody, and its slot is written over."""
        tower = self.modalities[name].tower
        order = torch.where(active, self.rows.order + n_together - 1, -1)[:, None]
        # The next slot of a complete row may be past the last one; no token of such a row is ever read again.
        positions = self.rows.positions[tower].clamp(max=self.rows.capacity[tower] - 1)[:, None]
        return TowerBatch(
            tokens=tokens[:, None],
            order=order,
            visible=torch.where(active, self.rows.order, -1)[:, None],
            segment=torch.where(active, self.rows.segment + number, -1)[:, None],
            offset=torch.full_like(order, step),
            positions=positions,
            places=order.clamp(min=0) if tower in self.graph.layout.shared else positions,
            inserted=torch.zeros_like(order, dtype=torch.bool),
            targets=torch.full_like(order, IGNORE),
        )

    def _insert(self, source: str, segment: Tensor, lengths: Tensor, later: Sequence[str]) -> None:
        """Run the places that a finished segment takes in the sequences of towers whose turn comes later.

        Args:
            source: the tower whose segment is finished.
            segment: (B,) its number.
            lengths: (B,) its tokens, without begin and end.
            later: towers whose turn comes later, once for each segment.
        """
        for insert in self.graph.layout.inserts:
            if insert.source != source or insert.target not in later:
                continue
            target, rows = insert.target, self.rows
            counts = torch.tensor([insert.places(n + 2) for n in lengths.tolist()], device=lengths.device)
            needed = int((rows.positions[target] + counts).max()) + 2 * later.count(target)
            limit = self.graph.towers[target].max_len
            if limit is not None and needed > limit:
                raise DataError(f"{target}: {source} takes {needed} places; the tower takes at most {limit}")
            inputs = self._places_taken(target, segment, counts)
            self.decoding.n_slots[target] = min(
                self.decoding.n_slots[target] + inputs.tokens.shape[1], rows.capacity[target]
            )
            writes = {site for site in self.graph.sites if site.source == target and site.target in later}
            given = {site for site in self.decoding.memories if site.target == target}
            plan = self.plan.prune(heads=set(), sees=frozenset(), writes=writes, given=given, layers={target})
            self.model.run(plan, {target: inputs}, self.multimodal, self.decoding)
            self.model.commit(self.decoding)
            rows.positions[target] = rows.positions[target] + counts

    def _places_taken(self, target: str, segment: Tensor, counts: Tensor) -> TowerBatch:
        """(B, n) places for a finished segment, rows padded at the end."""
        offset = torch.arange(int(counts.max()), device=counts.device).expand(len(counts), -1)
        there = offset < counts[:, None]
        order = torch.where(there, self.rows.order[:, None] - 1, -1)
        frame = self.graph.towers[target].frame
        positions = (self.rows.positions[target][:, None] + offset).clamp(max=self.rows.capacity[target] - 1)
        return TowerBatch(
            tokens=torch.full_like(order, frame.end if frame else 0),
            order=order,
            visible=order,
            segment=torch.where(there, segment[:, None], -1),
            offset=offset,
            positions=positions,
            places=order.clamp(min=0) if target in self.graph.layout.shared else positions,
            inserted=there,
            targets=torch.full_like(order, IGNORE),
        )


def _frame(modality: Modality) -> tuple[int, int]:
    """Begin and end in the tower's ids."""
    frame = cast("Frame", modality.frame)
    return modality.first_id + frame.begin, modality.first_id + frame.end


def _likeliest(logits: Tensor, modality: Modality) -> Tensor:
    """(B,) the likeliest of the modality's own ids, in the tower's."""
    size = logits.shape[-1] if modality.vocab_size is None else modality.vocab_size
    return logits[:, modality.first_id : modality.first_id + size].argmax(dim=-1) + modality.first_id


def _cut(found: Sequence[Tensor], end: int, first_id: int) -> list[list[int]]:
    """Each row's tokens up to its end id, in the modality's ids."""
    table = torch.stack(list(found), dim=1).tolist()
    return [[token - first_id for token in (row[: row.index(end)] if end in row else row)] for row in table]
