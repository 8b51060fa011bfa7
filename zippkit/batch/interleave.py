"""Segments in linear order to runs of each tower's own tokens.

Every segment is framed by its begin and end ids and takes the next orders of its document. A tower's tokens are those
of its segments, one behind the other, with the slots that links insert before them. Nothing here is done token by
token: `zippkit.batch.columns` makes the columns of runs.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zippkit.batch.batch import IGNORE, Segment
from zippkit.errors import DataError, did_you_mean
from zippkit.plan.sequence_layout import Modality, SequenceLayout, turns
from zippkit.spec.kinds import TowerConfig

ANY = np.iinfo(np.int64).max


class Run(NamedTuple):
    """Neighbouring tokens of one tower: a framed segment, or the slots that a link inserts for one."""

    document: int
    segment: int
    """Index of the segment in its document."""
    length: int
    """Tokens, begin and end included."""
    order: int
    """Of its first token, counted from the document's."""
    order_step: int
    """From one token to the next."""
    visible: int
    """Order from which its first token is visible."""
    visible_step: int
    inserted: bool = False
    loss: bool = False
    modality: int = -1
    """Index among the layout's modalities; -1 for inserted slots."""
    following: int = IGNORE
    """Index of the next segment's modality."""


class Kind(NamedTuple):
    """What a segment of one modality needs to be laid out."""

    number: int
    """Among the layout's modalities."""
    tower: str
    config: TowerConfig
    causal: bool
    learns: bool
    """Whether its tokens can be predicted."""
    framed: bool
    continuous: bool


class Interleaving:
    """Lays out documents one after the other, each segment after segment."""

    def __init__(self, towers: Mapping[str, TowerConfig], layout: SequenceLayout) -> None:
        """Prepare an empty batch.

        Args:
            towers: configs by name.
            layout: what the composition's links ask of a sequence.
        """
        self.towers, self.layout = towers, layout
        self.modalities = layout.modalities(towers)
        self.frames = _framing(list(self.modalities.values()))
        """(3, modalities) begin, end and first id of each."""
        self.sizes = np.array([ANY if m.vocab_size is None else m.vocab_size for m in self.modalities.values()])
        """(modalities,) of their vocabularies."""
        self.runs: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        """The fields of `Run`, by tower, in the order of documents."""
        self.contents: dict[str, list[NDArray[Any]]] = defaultdict(list)
        """By tower, of each run that is not inserted: ids without begin and end, or a continuous tower's inputs."""
        self.n_orders: list[int] = []
        """How many orders each document takes."""
        self.n_segments: list[int] = []
        """Of each document."""
        self.order = 0
        self._kinds = {
            name: _kind(i, modality, towers[modality.tower])
            for i, (name, modality) in enumerate(self.modalities.items())
        }
        self._waiting: dict[str, list[tuple[int, int]]] = {}
        """For each tower, the slots that links insert before its next segment: (segment index, number)."""

    def add(self, segments: Sequence[Segment], where: str) -> None:
        """Lay out one more document.

        Args:
            segments: in linear order.
            where: what messages call it.

        Raises:
            DataError: an unknown tower, tokens that are no whole numbers, segments that are simultaneous and not of
                one length.
        """
        self.order = index = 0
        self._waiting.clear()
        for turn, following in self._turns(segments):
            self._turn(index, turn, following, where)
            index += len(turn)
        self.n_orders.append(self.order)
        self.n_segments.append(index)

    def _turns(self, segments: Sequence[Segment]) -> Iterable[tuple[Sequence[Segment], int]]:
        """Each turn's segments, and the index of the modality after it; the number of modalities after the last one."""
        if not (self.layout.clocks or self.layout.tells_next):
            return zip(zip(segments, strict=True), repeat(IGNORE), strict=False)
        given, taken = iter(segments), turns([segment.tower for segment in segments], self.layout)
        following = [IGNORE] * len(taken)
        if self.layout.tells_next and taken:
            # An unknown name is told when its own turn comes. A document without a turn has no end to predict.
            later = [self._kinds[turn[0]].number if turn[0] in self._kinds else IGNORE for turn in taken[1:]]
            following = [*later, len(self._kinds)]
        return zip([tuple(islice(given, len(turn))) for turn in taken], following, strict=True)

    def _turn(self, index: int, segments: Sequence[Segment], following: int, where: str) -> None:
        """Append one segment, or two simultaneous ones."""
        kind, n, content = self._framed(index, segments[0], where)
        framed, step = [kind], len(segments)
        self.contents[kind.tower].append(content)
        if step > 1:
            other, n_other, content = self._framed(index + 1, segments[1], where)
            self._check_simultaneous(index, [n - 2, n_other - 2], segments, where)
            framed.append(other)
            self.contents[other.tower].append(content)
        for i, kind in enumerate(framed):
            self._place(kind, index + i, n, step, segments[i].loss, following)
        self.order += step * n
        for insert in self.layout.inserts:
            for i, kind in enumerate(framed):
                if insert.source == kind.tower:
                    self._waiting.setdefault(insert.target, []).append((index + i, insert.n_slots(n)))

    def _place(self, kind: Kind, index: int, n: int, step: int, loss: bool, following: int) -> None:
        """Give a segment the next orders, of which each of its tokens takes as many as segments advance together."""
        if self._waiting:
            self._insert(kind.tower)
        # What is simultaneous may be seen at once: each tick counts two, and its tokens are visible from the first.
        begin, document, learns = self.order, len(self.n_orders), loss and kind.learns
        visible, visible_step = (begin, step) if kind.causal else (begin + step * n - 1, 0)
        order = begin + step - 1
        run = (document, index, n, order, step, visible, visible_step, False, learns, kind.number, following)
        self.runs[kind.tower].append(run)

    def _check_simultaneous(self, index: int, lengths: Sequence[int], segments: Sequence[Segment], where: str) -> None:
        if len(set(lengths)) > 1:
            raise DataError(
                f"{where}: segments {index} and {index + 1}: {' and '.join(segment.tower for segment in segments)} are "
                f"simultaneous (`clock: sync`), but have {' and '.join(map(str, lengths))} tokens; expected as many"
            )

    def _insert(self, tower: str) -> None:
        """Give a tower the slots that links insert before its next segment.

        They have that segment's order, so a token in between sees neither them nor, by them, that the segment follows.
        """
        for index, n in self._waiting.pop(tower, ()):
            run = Run(len(self.n_orders), index, n, self.order, 0, self.order, 0, inserted=True)
            self.runs[tower].append(run)

    def _framed(self, index: int, segment: Segment, where: str) -> tuple[Kind, int, NDArray[Any]]:
        """What the segment is of, how many tokens it makes, and its content."""
        kind = self._kinds.get(segment.tower)
        if kind is None:
            raise DataError(
                f"{where}: segment {index}: no tower is called {segment.tower!r}"
                f"{did_you_mean(segment.tower, self._kinds)}"
            )
        if not kind.continuous:
            ids = _whole_numbers(segment, index, where)
            if not kind.framed:
                raise DataError(f"{where}: segment {index} ({segment.tower}): the tower has no frame")
            return kind, len(ids) + 2, ids
        try:
            inputs = np.asarray(segment.tokens, dtype=np.float32)
            return kind, kind.config.n_states(inputs), inputs
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: segment {index} ({segment.tower}): {error}") from error


def _framing(modalities: Sequence[Modality]) -> NDArray[np.int64]:
    """(3, modalities) begin and end in the tower's ids, and the first of the modality's; 0 where there is no frame."""
    found = np.zeros((3, len(modalities)), dtype=np.int64)
    for i, each in enumerate(modalities):
        if each.frame is not None:
            found[:, i] = each.first_id + each.frame.begin, each.first_id + each.frame.end, each.first_id
    return found


def _kind(number: int, modality: Modality, config: TowerConfig) -> Kind:
    learns = config.predicts and not modality.continuous
    framed = modality.frame is not None
    return Kind(number, modality.tower, config, config.causal, learns, framed, modality.continuous)


def _whole_numbers(segment: Segment, index: int, where: str) -> NDArray[Any]:
    """A segment's ids as they are, in one dimension."""
    given: Any = segment.tokens
    if not isinstance(given, np.ndarray):
        # A tensor may be on a device.
        given = given.tolist() if hasattr(given, "tolist") else given
        try:
            given = np.asarray(given)
        except (TypeError, ValueError, OverflowError):
            return _one_by_one(segment, index, where)
    return given if given.ndim == 1 and given.dtype.kind in "iub" else _one_by_one(segment, index, where)


def _one_by_one(segment: Segment, index: int, where: str) -> NDArray[np.int64]:
    """Ids of a kind of their own, such as none at all; or what is wrong with them."""
    try:
        given = segment.tokens.tolist() if hasattr(segment.tokens, "tolist") else segment.tokens
        return np.array([operator.index(token) for token in given], dtype=np.int64)
    except (TypeError, OverflowError) as error:
        told = f"expected a run of whole numbers as tokens: {error}"
        raise DataError(f"{where}: segment {index} ({segment.tower}): {told}") from error
