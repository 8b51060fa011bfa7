"""The engine of generation: each row runs through its segments by itself, with caches and memories.

Every step advances, for each turn that some rows are at, one tower (or two that have one clock) by a token. What a
tower reads of the others was computed once, when their segments were complete.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Literal, Self, TypeAlias, cast

import torch
from torch import Tensor

from zippkit.batch.batch import IGNORE, Batch, Segment, TowerBatch
from zippkit.batch.collate import declarations
from zippkit.composition import Composition
from zippkit.errors import DataError, ZippkitError
from zippkit.generation.beam_search import beam_search
from zippkit.generation.length_limits import Room, Standing, Turn
from zippkit.generation.sampling import choose, penalised
from zippkit.model.decoding_state import Decoding
from zippkit.model.links.base import Memory
from zippkit.model.next_modality import PREFIX
from zippkit.plan.plan import Plan, Wanted
from zippkit.plan.sequence_layout import turns
from zippkit.spec.kinds import Frame
from zippkit.spec.sampling import Sampling

Prompt: TypeAlias = Sequence[Segment]
MAX_SEGMENTS = 8
"""The most segments of a row for which the model itself chooses what comes next."""
Watch: TypeAlias = Callable[[str, dict[int, tuple[int, int]], Tensor], None]
"""Called before a token is chosen: with a modality; for each row that it advances, the number of its segment and how
many tokens of it there are, its begin included; and the logits (B, V) of its tower."""


@dataclass(frozen=True)
class Piece:
    """One new token, or the end of a segment."""

    row: int
    segment: int
    """Which of the row's new segments, from 0."""
    modality: str
    token: int | None
    """In the modality's own ids; None where the segment ends."""
    score: float | None = None
    """Of a segment that a beam search found, at its end: its log-probability over its length to a power."""


@dataclass(kw_only=True)
class _Row(Standing):
    """Where a row stands."""

    turns: list[Turn]
    """What is to come, the present turn first."""
    random: torch.Generator
    left: int = 0
    """How many turns the model itself may still add."""
    segment: int = 0
    """Number of the next segment."""
    room: int = 0
    """Longest segment of this turn."""
    ahead: list[list[int]] = field(default_factory=list)
    """What is to be fed, step by step, for each modality of this turn, in its tower's ids."""
    found: list[list[int]] = field(default_factory=list)
    """What was generated in this turn, for each modality of it, in its own ids."""
    step: int = 0
    """Tokens that were fed in this turn."""
    ending: bool = False
    """Nothing is chosen any more in this turn: what is ahead ends with the end ids."""
    done: list[Segment] = field(default_factory=list)


class Generation(Iterator[Piece]):
    """A generation that is under way: iterating over it advances it by a token in every row.

    It is its own iterator: whoever stops and iterates again goes on where it was.
    """

    def __init__(
        self,
        zipped: Composition,
        prompts: Sequence[Prompt],
        outputs: Sequence[Sequence[str]],
        limits: Mapping[str, int],
        ways: Mapping[str, Sampling],
        seeds: Sequence[int],
        watch: Watch | None = None,
        auto: Sequence[str] = (),
        multimodal: bool | Sequence[bool] = True,
    ) -> None:
        self._auto = list(auto)
        self._graph, self._model, self._plan = zipped.graph, zipped.model, zipped.plan
        self._limits, self._ways, self._watch = limits, ways, watch
        self._modalities, self._layout, self._room = zipped.graph.modalities, zipped.graph.layout, Room(zipped.graph)
        self._rows = [
            _Row(
                turns=turns(names, self._layout),
                random=torch.Generator().manual_seed(seed % 2**64),
                segment=len(prompt),
                left=MAX_SEGMENTS if auto else 0,
            )
            for prompt, names, seed in zip(prompts, outputs, seeds, strict=True)
        ]
        possible = {self._turn_of(name) for name in self._auto} | {turn for row in self._rows for turn in row.turns}
        for names in (turn for turn in possible if len(turn) > 1):
            if any(ways[name].beams > 1 for name in names):
                raise ZippkitError(f"beams: {' and '.join(names)} advance together; expected beams: 1 for them")
        self._decoding = Decoding(len(prompts))
        self._plans: dict[object, Plan] = {}
        self._capacity: dict[str, int] = {}
        self._device = next(self._model.parameters()).device
        self._declared = multimodal
        kinds = [{s.tower for s in prompt} | {*names, *auto} for prompt, names in zip(prompts, outputs, strict=True)]
        declared = declarations(multimodal, kinds, [f"prompt {i}" for i in range(len(prompts))])
        self._multimodal = declared.to(self._device) if isinstance(declared, Tensor) else declared
        self._prompts = prompts
        self._seen: dict[str, Tensor] = {}
        self._pieces = self._run_on()
        with torch.inference_mode():
            self._prefill(zipped, prompts)
            self._begin(range(len(prompts)))

    @property
    def segments(self) -> list[list[Segment]]:
        """For each row its new segments so far; the last one may not be complete."""
        unfinished = [
            [Segment(n, list(found)) for n, found in zip(row.turns[0], row.found, strict=True)] if row.turns else []
            for row in self._rows
        ]
        return [row.done + more for row, more in zip(self._rows, unfinished, strict=True)]

    def cancel(self, row: int) -> None:
        """A row ends where it is; the others go on."""
        stopped = self._rows[row]
        stopped.done = self.segments[row]
        stopped.turns = []
        for pending in self._decoding.pending.values():
            pending.drop(row)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def _run_on(self) -> Iterator[Piece]:
        while any(row.turns for row in self._rows):
            by_turn: dict[Turn, list[int]] = {}
            for i, row in enumerate(self._rows):
                if row.turns:
                    by_turn.setdefault(row.turns[0], []).append(i)
            for turn, at_turn in by_turn.items():
                # Whoever takes the pieces may have cancelled a row since.
                rows = [i for i in at_turn if self._rows[i].turns]
                if not rows:
                    continue
                with torch.inference_mode():
                    pieces = self._search(turn[0], rows) if self._ways[turn[0]].beams > 1 else self._step(turn, rows)
                yield from pieces

    def _towers(self, wanted: Sequence[Turn]) -> list[str]:
        """The towers of some turns, once for each segment."""
        return [self._modalities[name].tower for turn in wanted for name in turn]

    def _later(self, i: int) -> list[str]:
        """The towers that advance in a row after its present turn, or may."""
        return self._to_come(i, self._rows[i].turns[1:])

    def _to_come(self, i: int, given: Sequence[Turn]) -> list[str]:
        """The towers of these turns of a row, and of what the model may choose then."""
        return self._towers([*given, *[self._turn_of(name) for name in self._auto if self._rows[i].left]])

    def _turn_of(self, name: str) -> Turn:
        """The turn that a modality has: with the one that has its clock, if there is one."""
        partners = [other for other in self._auto if self._layout.simultaneous(name, other)]
        return tuple(sorted([name, *partners[:1]], key=list(self._modalities).index))

    def _follow(self, i: int, logits: Tensor) -> None:
        """Add the turn that the model tells, by (N + 1,) logits, unless it tells that nothing follows, or what cannot
        follow."""
        row, names = self._rows[i], list(self._modalities)
        if row.left:
            able = [names.index(name) for name in self._auto] + [len(names)]
            best = able[int(logits[able].argmax())]
            row.left -= 1
            turn = self._turn_of(names[best]) if best < len(names) else ()
            row.turns += [turn] if turn and self._can_follow(i, turn) else []

    def _can_follow(self, i: int, turn: Turn) -> bool:
        """Whether a turn has room in a row, and would be a turn of its own."""
        row = self._rows[i]
        given = [segment.tower for segment in (*self._prompts[i], *row.done)]
        apart = turns([*given, *turn], self._layout) == [*turns(given, self._layout), turn]
        return apart and self._room.fits(self._towers([turn]), row)

    def _had(self, name: str, size: int) -> Tensor:
        """(B, size) which of a modality's ids each row's tower was fed so far, begin and end included."""
        seen = torch.zeros(len(self._rows), size, dtype=torch.bool)
        frame = cast("Frame", self._modalities[name].frame)
        for had, row, prompt in zip(seen, self._rows, self._prompts, strict=True):
            for segment in (*prompt, *row.done):
                if segment.tower == name:
                    had[torch.as_tensor(segment.tokens, dtype=torch.long)] = True
                    had[[frame.begin, frame.end]] = True
            if row.turns and name in row.turns[0]:
                had[[frame.begin, *row.found[row.turns[0].index(name)]]] = True
        return seen.to(self._device)

    def _mark(self, i: int, name: str, which: Literal["begin", "end"] | int) -> None:
        """A row has had one more of a modality's ids."""
        if name in self._seen:
            token = getattr(self._modalities[name].frame, which) if isinstance(which, str) else which
            self._seen[name][i, token] = True

    def _own(self, name: str, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, V) logits of a modality's own ids, and which of them each row has had, where that matters."""
        modality, way = self._modalities[name], self._ways[name]
        last = None if modality.vocab_size is None else modality.first_id + modality.vocab_size
        own = logits[:, modality.first_id : last]
        if way.repetition_penalty != 1 and name not in self._seen:
            self._seen[name] = self._had(name, own.shape[1])
        return own, self._seen.get(name)

    def _prefill(self, zipped: Composition, prompts: Sequence[Prompt]) -> None:
        """Run the prompts once: fill the caches of the towers that go on, and the memories that they read."""
        advancing = [self._to_come(i, row.turns) for i, row in enumerate(self._rows)]
        towers = dict.fromkeys(name for names in advancing for name in names)
        batch = None
        if any(prompts) and towers:
            batch = zipped.collate(prompts, multimodal=self._declared).to(self._device)
        given = batch.towers if batch else {}
        self._await_prompts(given)
        for name, inputs in given.items():
            orders, counts = inputs.order.amax(dim=1).tolist(), (inputs.order >= 0).sum(dim=1).tolist()
            for row, order, count in zip(self._rows, orders, counts, strict=True):
                row.order = max(row.order, order + 1)
                row.positions[name] = count
        for name in towers:
            width = given[name].tokens.shape[1] if name in given else 0
            self._capacity[name] = max(width, *(self._slots(name, i, advancing[i]) for i in range(len(prompts))))
            self._decoding.caches[name] = self._model.tower(name).new_cache(len(prompts), self._capacity[name])
            self._decoding.n_slots[name] = width
        if batch is not None:
            told = self._run_prompts(batch, list(towers), prompts)
            for i, logits in told.items():
                self._follow(i, logits)

    def _await_prompts(self, given: Mapping[str, TowerBatch]) -> None:
        """Remember the places of the prompts' segments that no segment of their target follows."""
        segments = {name: tokens.segment.masked_fill(tokens.inserted, -1).tolist() for name, tokens in given.items()}
        for i, row in enumerate(self._rows):
            for insert in self._layout.inserts:
                last = max(segments[insert.target][i]) if insert.target in segments else -1
                sizes = Counter(segments[insert.source][i]) if insert.source in segments else {}
                new = [(number, insert.n_slots(n)) for number, n in sizes.items() if number > last]
                row.waiting[insert.target] = sorted([*row.waiting[insert.target], *new], key=operator.itemgetter(0))

    def _run_prompts(self, batch: Batch, advancing: Sequence[str], prompts: Sequence[Prompt]) -> dict[int, Tensor]:
        """Run the prompts; what the model tells comes after each, where it is to choose."""
        last = [self._modalities[prompt[-1].tower].tower for prompt in prompts] if self._auto else []
        writes = {s for s in self._graph.sites if s.source in batch.towers and s.target in advancing}
        layers = set(advancing) & set(batch.towers)
        plan = self._plan.prune(
            Wanted(sees=batch.sees, writes=writes, layers=layers, parts={PREFIX + name for name in last})
        )
        logits = self._model.run(plan, batch.towers, self._multimodal, self._decoding)
        self._model.commit(self._decoding, self._decoding.rows)
        return {i: logits[PREFIX + name][i, self._rows[i].positions[name] - 1] for i, name in enumerate(last)}

    def _slots(self, name: str, i: int, advancing: Sequence[str]) -> int:
        """The most slots of a tower's cache that a row can come to need."""
        row = self._rows[i]
        if name not in advancing:
            return row.positions[name]
        self._room.check(name, row, advancing)
        wanted = [modality for turn in row.turns for modality in turn] + self._auto * row.left
        return self._room.slots(name, row, wanted, self._limits)

    def _begin(self, rows: Sequence[int]) -> None:
        """Start the next turn of each row that has one; what links insert before it runs at once."""
        waiting: dict[str, list[int]] = {}
        for i in rows:
            row = self._rows[i]
            if not row.turns:
                continue
            turn = row.turns[0]
            limit = min(self._limits[name] for name in turn)
            row.room = self._room.longest(self._towers([turn]), self._later(i), row, limit)
            row.step, row.ending = 0, False
            row.found = [[] for _ in turn]
            row.ahead = [[self._frame(name)[0] for name in turn]]
            for name in turn:
                self._mark(i, name, "begin")
            for tower in self._towers([turn]):
                if row.waiting[tower]:
                    waiting.setdefault(tower, []).append(i)
        for tower, alike in waiting.items():
            self._insert(tower, alike)

    def _frame(self, name: str) -> tuple[int, int]:
        """Begin and end in the tower's ids."""
        modality = self._modalities[name]
        frame = cast("Frame", modality.frame)
        return modality.first_id + frame.begin, modality.first_id + frame.end

    def _is_read(self, i: int) -> bool:
        """Whether somebody needs the row's present segments once they are complete."""
        here, later = self._towers(self._rows[i].turns[:1]), self._later(i)
        return (
            self._rows[i].left > 0
            or any(name in later for name in here)
            or any(site.source in here and site.target in later for site in self._graph.sites)
        )

    def _pruned(self, turn: Turn, rows: Sequence[int], with_heads: bool, tells: bool) -> Plan:
        """What a step of some rows at one turn runs."""
        towers = self._towers([turn])
        later = {name for i in rows for name in self._later(i)}
        writes = frozenset(s for s in self._graph.sites if s.source in towers and s.target in later)
        together = frozenset((one, other) for one in towers for other in towers if one != other)
        given = frozenset(
            s for s in self._decoding.memories if s.target in towers and (s.target, s.source) not in together
        )
        heads, layers = (set(towers), set[str]()) if with_heads else (set[str](), later.intersection(towers))
        parts = {PREFIX + towers[0]} if tells else set[str]()
        key = (turn, with_heads, tells, writes, given, frozenset(layers))
        if key not in self._plans:
            self._plans[key] = self._plan.prune(Wanted(heads, together, writes, given, layers, parts))
        return self._plans[key]

    def _step(self, turn: Turn, rows: list[int]) -> list[Piece]:
        """Feed one token of each modality of a turn in some rows, and choose the next."""
        going = [i for i in rows if not self._rows[i].ending]
        fed = {i: self._rows[i].ahead.pop(0) for i in rows}
        telling = [i for i in rows if self._rows[i].left and self._rows[i].ending and not self._rows[i].ahead]
        plan = self._pruned(turn, rows, bool(going), bool(telling))
        inputs = {
            self._modalities[name].tower: self._inputs(name, k, {i: [fed[i][k]] for i in rows}, len(turn))
            for k, name in enumerate(turn)
        }
        logits = self._run(plan, inputs, rows)
        for i in rows:
            self._rows[i].order += len(turn)
            self._rows[i].step += 1
        chosen = {name: self._choose(name, k, going, logits) for k, name in enumerate(turn)} if going else {}
        pieces = [piece for i in going for piece in self._take(i, turn, [chosen[name][i] for name in turn])]
        for i in going:
            if self._rows[i].ending and not self._is_read(i):
                # What nobody reads is not run, but has its place in the whole sequence.
                self._rows[i].order += len(turn) * len(self._rows[i].ahead)
                self._rows[i].ahead.clear()
        told = {i: logits[PREFIX + self._towers([turn])[0]][i, -1] for i in telling}
        self._finish(turn, [i for i in rows if not self._rows[i].ahead], told)
        return pieces

    def _run(
        self, plan: Plan, inputs: Mapping[str, TowerBatch], rows: list[int], counts: Mapping[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Run new tokens of some rows; ``counts`` says how many of each row are no padding, if not all."""
        for name, new in inputs.items():
            for i in rows:
                self._rows[i].positions[name] += counts[i] if counts else new.tokens.shape[1]
            longest = max(self._rows[i].positions[name] for i in rows)
            self._decoding.n_slots[name] = max(self._decoding.n_slots[name], longest)
        self._decoding.rows = rows
        return self._model.run(plan, inputs, self._multimodal, self._decoding)

    def _choose(self, name: str, number: int, rows: list[int], logits: Mapping[str, Tensor]) -> list[int]:
        """The next token of every row, in the tower's ids; that of a row that is not at this turn means nothing."""
        modality, way = self._modalities[name], self._ways[name]
        of_tower = logits[modality.tower][:, -1]
        if self._watch is not None:
            self._watch(name, {i: (self._rows[i].segment + number, self._rows[i].step) for i in rows}, of_tower)
        draws = None
        if way.temperature > 0:
            drawn = [0.0] * len(self._rows)
            for i in rows:
                drawn[i] = float(torch.rand((), generator=self._rows[i].random, dtype=torch.float64))
            draws = torch.tensor(drawn, device=self._device, dtype=torch.float64)
        own, seen = self._own(name, of_tower)
        ids = choose(own, way, seen, draws)
        return [token + modality.first_id for token in ids.tolist()]

    def _take(self, i: int, turn: Turn, taken: list[int]) -> list[Piece]:
        """What a row does with the tokens that were chosen: goes on with them, or ends."""
        row = self._rows[i]
        ends = [self._frame(name)[1] for name in turn]
        pieces: list[Piece] = []
        goes_on = row.room > 0 and not any(token == end for token, end in zip(taken, ends, strict=True))
        if goes_on:
            for number, (name, token) in enumerate(zip(turn, taken, strict=True)):
                row.found[number].append(token - self._modalities[name].first_id)
                pieces.append(Piece(i, len(row.done) + number, name, row.found[number][-1]))
                self._mark(i, name, row.found[number][-1])
        # After the last token that there is room for, the end needs no choice.
        row.ending = not goes_on or row.step >= row.room
        row.ahead = [taken] * goes_on + [ends] * row.ending
        if row.ending:
            pieces += [Piece(i, len(row.done) + number, name, None) for number, name in enumerate(turn)]
        return pieces

    def _inputs(self, name: str, number: int, tokens: Mapping[int, list[int]], n_together: int) -> TowerBatch:
        """New tokens of a modality in some rows, the same number in each. The others see nothing and are seen by
        nobody; what they write into their caches is written over.

        Args:
            name: the modality.
            number: which of the turn's modalities it is.
            tokens: for each row, what comes next, in the tower's ids.
            n_together: how many modalities advance together.
        """
        rows, n_new = {i: self._rows[i] for i in tokens}, len(next(iter(tokens.values())))
        return self._columns(
            name=self._modalities[name].tower,
            tokens=tokens,
            order={i: [row.order + n_together * k for k in range(n_new)] for i, row in rows.items()},
            later=n_together - 1,
            segment={i: [row.segment + number] * n_new for i, row in rows.items()},
            offset={i: [row.step + k for k in range(n_new)] for i, row in rows.items()},
        )

    def _columns(
        self,
        name: str,
        tokens: Mapping[int, list[int]],
        order: Mapping[int, list[int]],
        later: int,
        segment: Mapping[int, list[int]],
        offset: Mapping[int, list[int]],
        inserted: bool = False,
    ) -> TowerBatch:
        """(B, n) columns of new tokens of a tower, padded behind those of a row with fewer; ``later`` is how much later
        than they are seen they see."""
        n_new, last = max(map(len, tokens.values())), self._capacity[name] - 1
        table: list[list[list[int]]] = []
        for i, row in enumerate(self._rows):
            # What is written into a slot by padding, or by a row that rests, is written over by the token that is due
            # there; the next slot of a complete row may be past the last one.
            slots = [min(row.positions[name] + k, last) for k in range(n_new)]
            columns = (tokens[i], order[i], segment[i], offset[i]) if i in tokens else ([], [], [], [])
            padded = [[*c, *[fill] * (n_new - len(c))] for c, fill in zip(columns, (0, -1, -1, 0), strict=True)]
            table.append([*padded, slots])
        ids, visible, segments, offsets, positions = torch.tensor(table, device=self._device).unbind(dim=1)
        seen = torch.where(visible >= 0, visible + later, -1) if later else visible
        return TowerBatch(
            tokens=ids,
            order=seen,
            visible=visible,
            segment=segments,
            offset=offsets,
            positions=positions,
            position_ids=seen.clamp(min=0) if name in self._layout.shared else positions,
            inserted=torch.full_like(ids, inserted, dtype=torch.bool),
            targets=torch.full_like(ids, IGNORE),
        )

    def _finish(self, turn: Turn, rows: Sequence[int], told: Mapping[int, Tensor]) -> None:
        """The present segments of some rows are complete: they are read from now on, and the next turn begins, the one
        that was ``told`` where the model chooses."""
        if not rows:
            return
        self._model.commit(self._decoding, rows)
        for i in rows:
            row = self._rows[i]
            self._await(row, turn)
            for name in turn:
                self._mark(i, name, "end")
            row.done += [Segment(name, found) for name, found in zip(turn, row.found, strict=True)]
            row.segment += len(turn)
            row.turns.pop(0)
            if i in told:
                self._follow(i, told[i])
        self._begin(rows)

    def _await(self, row: _Row, turn: Turn) -> None:
        """The segments of a turn are complete: their places wait for the next segment of each target."""
        for number, (name, found) in enumerate(zip(turn, row.found, strict=True)):
            for insert in self._layout.inserts:
                if insert.source == self._modalities[name].tower:
                    row.waiting[insert.target].append((row.segment + number, insert.n_slots(len(found) + 2)))

    def _insert(self, tower: str, rows: list[int]) -> None:
        """Run the places that complete segments take before a segment of this tower, which is about to begin."""
        limit, frame = self._graph.towers[tower].max_len, self._graph.towers[tower].frame
        places: dict[int, list[tuple[int, int]]] = {}
        for i in rows:
            needed = self._room.used(tower, self._rows[i]) + 2 * self._towers(self._rows[i].turns).count(tower)
            if limit is not None and needed > limit:
                raise DataError(
                    f"{tower}: {needed} tokens, with the places that links insert and the frames of what follows; the "
                    f"tower takes at most {limit}"
                )
            places[i] = [(number, k) for number, n in self._rows[i].waiting.pop(tower) for k in range(n)]
        inputs = self._columns(
            name=tower,
            tokens={i: [frame.end if frame else 0] * len(taken) for i, taken in places.items()},
            order={i: [self._rows[i].order] * len(taken) for i, taken in places.items()},
            later=0,
            segment={i: [number for number, _ in taken] for i, taken in places.items()},
            offset={i: [k for _, k in taken] for i, taken in places.items()},
            inserted=True,
        )
        read = {name for i in rows for name in self._towers(self._rows[i].turns[:1]) + self._later(i)}
        writes = {s for s in self._graph.sites if s.source == tower and s.target in read}
        given = {s for s in self._decoding.memories if s.target == tower}
        plan = self._plan.prune(Wanted(writes=writes, given=given, layers={tower}))
        self._run(plan, {tower: inputs}, rows, {i: len(taken) for i, taken in places.items()})
        self._model.commit(self._decoding, rows)

    def _branch(self, tower: str, at: Sequence[int], same_rows: bool) -> Self:
        """Some of the rows, each as often as it is named, to try what comes next with one tower.

        Args:
            tower: the only one that will advance.
            at: the rows.
            same_rows: each new row descends from the same row of the prompts as the one that is in its place now.
        """
        index, found = torch.tensor(at, device=self._device), copy(self)
        found._rows = [replace(self._rows[i], positions=self._rows[i].positions.copy()) for i in at]
        found._prompts = [self._prompts[i] for i in at]
        found._seen = {name: seen[index] for name, seen in self._seen.items()}
        decoding = Decoding(len(at), n_slots=dict(self._decoding.n_slots), memories=self._decoding.memories)
        decoding.caches[tower] = self._model.tower(tower).reorder_cache(self._decoding.caches[tower], index)
        if not same_rows:
            decoding.memories = {
                site: Memory(memory.order[index], tuple(tensor[index] for tensor in memory.tensors))
                for site, memory in self._decoding.memories.items()
                if site.target == tower
            }
            if isinstance(self._multimodal, Tensor):
                found._multimodal = self._multimodal[index]
        found._decoding = decoding
        return found

    def _search(self, name: str, rows: list[int]) -> list[Piece]:
        """Generate a segment by beam search in rows that begin it, and run the best one where somebody reads it."""
        modality, way = self._modalities[name], self._ways[name]
        begin, end = self._frame(name)
        rooms = [self._rows[i].room for i in rows]
        frame, step = cast("Frame", modality.frame), _Beams(self, name, rows).step
        found = beam_search(step, frame.begin, frame.end, rooms, way.beams, way.length_penalty)
        by_length: dict[int, list[int]] = {}
        told: dict[int, Tensor] = {}
        for i, (tokens, _) in zip(rows, found, strict=True):
            self._rows[i].found = [tokens]
            if self._is_read(i):
                by_length.setdefault(len(tokens), []).append(i)
            else:
                self._rows[i].order += len(tokens) + 2
        for n_tokens, alike in by_length.items():
            shifted = {i: [t + modality.first_id for t in self._rows[i].found[0]] for i in alike}
            inputs = self._inputs(name, 0, {i: [begin, *tokens, end] for i, tokens in shifted.items()}, 1)
            telling = [i for i in alike if self._rows[i].left]
            logits = self._run(self._pruned((name,), alike, False, bool(telling)), {modality.tower: inputs}, alike)
            told |= {i: logits[PREFIX + modality.tower][i, -1] for i in telling}
            for i in alike:
                self._rows[i].order += n_tokens + 2
        pieces: list[Piece] = []
        for i, (tokens, score) in zip(rows, found, strict=True):
            number = len(self._rows[i].done)
            pieces += [*(Piece(i, number, name, token) for token in tokens), Piece(i, number, name, None, score)]
        self._finish((name,), rows, told)
        return pieces


class _Beams:
    """What one beam search runs: a generation with a row for each hypothesis."""

    def __init__(self, generation: Generation, name: str, rows: list[int]) -> None:
        self._state, self._rows, self._name = generation, rows, name
        self._tower = generation._modalities[name].tower
        self._plan = generation._plan.prune(
            Wanted(
                heads={self._tower},
                given={site for site in generation._decoding.memories if site.target == self._tower},
            )
        )
        self._owners: list[int] | None = None

    def step(self, parents: list[int], tokens: list[int], owners: list[int]) -> Tensor:
        """Log-probabilities (N, V) after one token more; see `zippkit.generation.beam_search.Step`."""
        at = parents if self._owners else [self._rows[parent] for parent in parents]
        self._state = state = self._state._branch(self._tower, at, same_rows=owners == self._owners)
        self._owners = owners
        first_id, everyone = state._modalities[self._name].first_id, list(range(len(at)))
        given = {k: [token + first_id] for k, token in enumerate(tokens)}
        logits = state._run(self._plan, {self._tower: state._inputs(self._name, 0, given, 1)}, everyone)
        own, seen = state._own(self._name, logits[self._tower][:, -1])
        if seen is not None:
            seen[everyone, tokens] = True
        for row in state._rows:
            row.order += 1
            row.step += 1
        # As transformers does: a penalised log-probability is not made a probability again.
        return penalised(own.log_softmax(dim=-1), seen, state._ways[self._name].repetition_penalty)
