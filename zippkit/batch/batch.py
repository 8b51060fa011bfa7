"""The model's input: each tower's own tokens densely packed, each with its order in the whole sequence.

Shapes: B rows, T tokens of one tower, N segments of a continuous tower.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from zippkit.batch.shared import Made, MadeBefore, Shared
from zippkit.batch.staircase import Staircase

IGNORE = -100
"""Target of a position that has no loss."""


COLUMNS = (
    *("tokens", "order", "start", "visible", "segment", "offset", "positions", "position_ids", "inserted", "targets"),
)

UNDESCRIBED: dict[str, Any] = {"stairs": {}, "own_stairs": None}


@dataclass(frozen=True)
class Segment:
    """A run of one modality, without its begin and end ids."""

    tower: str
    """The tower that reads it, or a modality that some tower's vocabulary was extended by."""
    tokens: Any
    """Token ids: a list, an array or a tensor of one dimension; or a continuous tower's inputs, such as a waveform."""
    loss: bool = True
    """Whether these tokens (and the end id) are to be predicted; continuous inputs never are."""


@dataclass(frozen=True)
class Features:
    """The inputs of a continuous tower: one entry for each of its segments in the batch."""

    values: Tensor
    """(N, ...) such as waveforms (N, samples) or pixels (N, channels, height, width); shorter ones end in zeros."""
    lengths: Tensor
    """(N,) length of each entry without its padding."""
    entry: Tensor
    """(B, T) index of the entry, 0 to N - 1, that a state belongs to; 0 at padding."""

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass(frozen=True)
class Branches:
    """Several continuations of one row in its KV cache, side by side, T new tokens of which each sees its ancestors."""

    slots: Tensor
    """(B, T) slot that each new token takes; elsewhere it is its position."""
    sees: Tensor
    """(B, T, S) bool: which slots it sees, its own among them."""
    positions: Tensor
    """(B, S) position of the token in each slot."""


@dataclass(frozen=True)
class TowerBatch:
    """One tower's tokens, rows padded at the end."""

    tokens: Tensor
    """(B, T) token ids; padding repeats the tower's end id."""
    order: Tensor
    """(B, T) rank in the interleaved sequence; -1 marks padding."""
    start: Tensor
    """(B, T) order of the first token of the token's own document: a query sees ``start <= key.order < query.order``.
    0 where a row is one document, and at padding."""
    visible: Tensor
    """(B, T) order from which other towers may see the token: its own, or its segment's last if not causal."""
    segment: Tensor
    """(B, T) index, in the row, of the token's segment; -1 marks padding. A slot that a link inserts carries the index
    of the segment that it stands for, and the order of the target's own segment that it is inserted before."""
    offset: Tensor
    """(B, T) index within its segment."""
    positions: Tensor
    """(B, T) index among the tower's own tokens of its document, which is its slot in the tower's KV cache where a row
    is one document; padding counts on."""
    position_ids: Tensor
    """(B, T) position ids of position embeddings: ``positions``, or ``order`` counted from ``start`` where towers share
    their attention."""
    inserted: Tensor
    """(B, T) bool: a slot that a link fills with a state of its own; the token id there means nothing."""
    targets: Tensor
    """(B, T) the next token of the same segment; IGNORE at its end, at padding and where no loss is asked."""
    n_segments: int = 1
    """Most segments of this tower in one row."""
    packed: bool = False
    """Whether some row holds several documents; where none does, ``start`` is 0 throughout."""
    features: Features | None = None
    """Of a continuous tower, whose tokens are all 0."""
    following: Tensor | None = None
    """(B, T) at a segment's last token, the index of the next segment's modality (the number of modalities where
    the row ends), and IGNORE elsewhere; None unless the model learns it."""
    states: Mapping[int, Tensor] | None = None
    """(B, T, D) by depth, 0 at padding: the tower's states wherever the batch's plan reads them, if they are known
    already; the plan then runs none of the tower's layers."""
    stairs: Mapping[str, Staircase] = field(default_factory=dict)
    """For each tower that these tokens see something of, their staircase over its tokens, kept on the host; empty where
    nobody has described them. Whoever changes ``order``, ``start``, ``segment`` or a source's ``visible`` drops it."""
    own_stairs: Staircase | None = None
    """The staircase of the tower's own tokens."""
    n_slots: int = 0
    """Slots of the tower's KV cache that are in use, these tokens' included; 0 where there is no cache."""
    branches: Branches | None = None
    """Where the tokens are continuations of one row in several ways; only of a tower that `takes_branches`."""
    shared: Shared | MadeBefore | None = None
    """Masks and angles of the forward pass that these tokens are part of."""
    places: Tensor | None = None
    """(N,) where the targets are, as ``b * T + t``, and -1 behind the last one; None: nobody has looked for them."""

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to a device."""
        moved = self.mapped(lambda column: column.to(device, non_blocking=True))
        features = self.features.to(device) if self.features else None
        states = self.states and {depth: each.to(device, non_blocking=True) for depth, each in self.states.items()}
        others = {name: getattr(self, name) for name in ("following", "places")}
        there: dict[str, Any] = {
            name: None if column is None else column.to(device, non_blocking=True) for name, column in others.items()
        }
        moved = replace(moved, features=features, states=states, **there)
        return replace(moved, stairs=self.stairs, own_stairs=self.own_stairs)

    def with_places(self, multiple: int = 1) -> Self:
        """Look for the targets, on the host: their number, filled up to a multiple, is a shape of what follows."""
        found = (self.targets.flatten() != IGNORE).nonzero().flatten()
        return replace(self, places=nn.functional.pad(found, (0, -len(found) % multiple), value=-1))

    @classmethod
    def alone(cls, tokens: Tensor) -> Self:
        """Batch (B, T) tokens of a tower by itself, one segment a row, with nothing to predict."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return cls(
            tokens=tokens,
            order=positions,
            start=torch.zeros_like(tokens),
            visible=positions,
            segment=torch.zeros_like(tokens),
            offset=positions,
            positions=positions,
            position_ids=positions,
            inserted=torch.zeros_like(tokens, dtype=torch.bool),
            targets=torch.full_like(tokens, IGNORE),
        )

    @property
    def slots(self) -> Tensor:
        """(B, T) slots of the tower's KV cache that the tokens take."""
        return self.positions if self.branches is None else self.branches.slots

    @property
    def document_start(self) -> Tensor | None:
        """(B, T) ``start``; None where every row is one document, so that nothing has to be compared with it."""
        return self.start if self.packed else None

    def once(self, kind: Hashable, of: tuple[Tensor, ...], make: Callable[[], Made]) -> Made:
        """As `Shared.once`; by itself, outside a forward pass, made anew at each call."""
        return make() if self.shared is None else self.shared.once(kind, of, make)

    @property
    def static(self) -> bool:
        """As `Shared.static`."""
        return self.shared is not None and self.shared.static

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``change`` to every (B, T) column; what was described no longer is."""
        columns: dict[str, Any] = {name: change(getattr(self, name)) for name in COLUMNS}
        return replace(self, **columns, **UNDESCRIBED)

    def part(self, which: slice) -> Self:
        """Slice the columns along T."""
        return self.mapped(lambda column: column[:, which])

    def hidden_before(self, counts: Sequence[int]) -> Self:
        """Turn the first ``counts[b]`` tokens of each row ``b`` into padding."""
        n_hidden = torch.tensor(counts, device=self.order.device)[:, None]
        hidden = torch.arange(self.order.shape[1], device=n_hidden.device) < n_hidden
        order, visible, segment = (
            column.masked_fill(hidden, -1) for column in (self.order, self.visible, self.segment)
        )
        return replace(self, order=order, visible=visible, segment=segment, **UNDESCRIBED)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate runs of tokens along T."""
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts], dim=1) for name in COLUMNS}
        return replace(parts[0], **columns, **UNDESCRIBED)


@dataclass(frozen=True)
class Batch:
    """Examples as the towers see them."""

    towers: dict[str, TowerBatch]
    """Only towers that have tokens in some row."""
    outputs: tuple[str, ...]
    """Towers on which a loss is asked, in spec order; the plan is pruned to them."""
    multimodal: Tensor | bool
    """(B,) rows that were declared multimodal, which pass the input projections; a bool where all rows are alike."""
    sees: frozenset[tuple[str, str]]
    """(target, source) pairs in which some target token has a source token before it; other links are blind."""

    @property
    def size(self) -> int:
        """Number of rows."""
        return next(iter(self.towers.values())).tokens.shape[0]

    def with_places(self, multiple: int = 1) -> Self:
        """Look for the targets of each tower on which a loss is asked (`TowerBatch.with_places`)."""
        found = {name: self.towers[name].with_places(multiple) for name in self.outputs}
        return replace(self, towers={**self.towers, **found})

    @property
    def n_tokens(self) -> int:
        """Number of tokens that are not padding; waits for the device."""
        return sum(int((tower.order >= 0).sum()) for tower in self.towers.values())

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to a device."""
        towers = {name: tower.to(device) for name, tower in self.towers.items()}
        multimodal = self.multimodal.to(device) if isinstance(self.multimodal, Tensor) else self.multimodal
        return replace(self, towers=towers, multimodal=multimodal)
