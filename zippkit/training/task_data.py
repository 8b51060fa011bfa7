"""A dataset seen through tasks: which segments an example gives, and which of them carry the loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from zippkit.batch.batch import Segment
from zippkit.data.dataset import Dataset
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.table import Example, Item, Split
from zippkit.errors import DataError
from zippkit.spec.kinds import Image, TowerConfig
from zippkit.spec.task import Task


class TaskData:
    """One task over one split: those of its examples that have all of the task's modalities."""

    def __init__(
        self,
        task: Task,
        dataset: Dataset,
        split: Split,
        readers: Mapping[str, TowerConfig] | None = None,
        loss: Collection[str] | None = None,
    ) -> None:
        """Look which examples there are; their contents stay on the disk until they are needed.

        Args:
            task: what is given, and what is predicted.
            dataset: what the ids mean.
            split: of that dataset.
            readers: the tower that reads each modality, where one of them may be fed pixels.
            loss: the modalities that carry the loss, wherever they stand; if left out the task's targets, and in
                documents whatever can be predicted.

        Raises:
            DataError: no example has all of the task's modalities, or documents have some that no tower reads.
        """
        self.task = task
        self._split = split
        self._places = places(task, split)
        if not len(self._places):
            raise DataError(_none(task, split))
        # A task without conditions takes of a document all segments of its modality.
        self._whole = split.documents and not task.conditions
        self.modalities = split.modalities if task.interleaved else tuple(dict.fromkeys(task.modalities))
        """Those that its examples have."""
        unread = [name for name in self.modalities if readers is not None and name not in readers]
        if unread:
            raise DataError(f"{split.path}: documents have segments of {', '.join(unread)}, which no tower reads")
        predicted = [name for name in self.modalities if readers is None or readers[name].predicts]
        self._loss = predicted if loss is None and self._whole else loss
        columns = dataset.manifest.modalities
        self._frames = {name: tuple(columns[name].shape or ()) for name in self.modalities}
        self._images: dict[str, tuple[PixelTokenizer, Image]] = {}
        for name in self.modalities:
            if readers and isinstance(feed := readers[name].feed, Image):
                self._images[name] = dataset.pixel_tokenizer(name), feed

    def __len__(self) -> int:
        return len(self._places)

    def part(self, fraction: float, seed: int) -> Self:
        """The same task over a part of its examples, in their order; a smaller part lies inside a larger one.

        Which examples those are is drawn for the whole split, so tasks with the same examples get the same part.
        """
        if fraction == 1:
            return self
        ranks = np.random.default_rng(seed).permutation(len(self._split))[self._places]
        kept = np.sort(np.argsort(ranks)[: max(1, round(fraction * len(self)))])
        part = copy(self)
        part._places = self._places[kept]
        return part

    def example(self, index: int) -> Example:
        """The example as the dataset has it."""
        return self._split[int(self._places[index])]

    def item(self, index: int, name: str) -> Item:
        """One of the task's modalities of an example, as the dataset has it."""
        return self._split.item(int(self._places[index]), name)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens, or samples, of each example in its longest modality."""
        longest: NDArray[np.int64] = np.max([self._lengths(name) for name in self.modalities], axis=0)
        return longest

    def _lengths(self, name: str) -> NDArray[np.int64]:
        return self._split.token_lengths(name)[self._places]

    def check_lengths(self, towers: Mapping[str, TowerConfig]) -> None:
        """Look for sequences that a tower cannot take, before anything is computed.

        Raises:
            DataError: names the longest; or the shortest waveform, if no state can be made of it.
        """
        for name in self.modalities:
            count, tower = max(1, self.task.modalities.count(name)), towers[name]
            if self._whole:
                if tower.predicts:
                    framed = self._lengths(name) + 2 * self._split.counts(name)[self._places]
                    self._check_limit(name, framed, tower.max_len, "tokens")
            elif not tower.continuous:
                # Each segment comes with its begin and end id; an encoder takes one at a time.
                count = count if tower.predicts else 1
                self._check_limit(name, count * (self._lengths(name) + 2), tower.max_len, "tokens")
            elif name not in self._images:
                self._check_waveforms(name, count, tower)

    def _check_limit(self, name: str, lengths: NDArray[np.int64], limit: int | None, what: str) -> None:
        n_long = int((lengths > limit).sum()) if limit is not None else 0
        if n_long:
            longest = int(lengths.argmax())
            raise DataError(
                f"{self._split.path}: example {self.name(longest)} has {lengths[longest]} {name} {what}, and "
                f"{n_long} of {len(self)} examples have more than the {limit} that the tower takes"
            )

    def _check_waveforms(self, name: str, count: int, tower: TowerConfig) -> None:
        """Without reading them: how many states come out is a matter of length."""
        lengths, places = np.unique(self._lengths(name), return_inverse=True)
        wrong = []
        for n_samples in dict.fromkeys((lengths[0], lengths[-1])):
            try:
                tower.n_states(self._blank(name, n_samples))
            except ValueError as error:
                example = self.name(int((lengths[places] == n_samples).argmax()))
                wrong.append(f"{self._split.path}: example {example}, {name}: {error}")
        if wrong:
            raise DataError("\n".join(wrong))
        if tower.max_len is not None:
            states = np.array([tower.n_states(self._blank(name, n_samples)) for n_samples in lengths])
            self._check_limit(name, count * states[places], tower.max_len, "states")

    def _blank(self, name: str, length: int) -> NDArray[np.float32]:
        """Inputs of a continuous tower of one length, whatever is in them."""
        return np.zeros((length, *self._frames[name]), np.float32)

    def ids(self, indices: Sequence[int]) -> tuple[str, ...]:
        """Names of examples."""
        return tuple(map(self.name, indices))

    def name(self, index: int) -> str:
        """Name of one example."""
        return self._split.name(int(self._places[index]))

    def _tokens(self, name: str, index: int) -> Any:
        return self._scaled(name, self._split.tokens(int(self._places[index]), name))

    def _scaled(self, name: str, item: Any) -> Any:
        if name in self._images:
            tokenizer, shape = self._images[name]
            return tokenizer.scaled(item, shape)
        return item

    def prompt(self, index: int) -> list[Segment]:
        """The segments that are given."""
        return [Segment(name, self._tokens(name, index), loss=False) for name in self.task.conditions]

    def segments(self, index: int) -> list[Segment]:
        """The whole example, with the loss on the targets, or on the modalities that were named."""
        if self._whole:
            row = self._split.segments(int(self._places[index]), encoded=True)
            here = [(name, self._scaled(name, item)) for name, item in row if name in self.modalities]
            return [Segment(name, item, self._loss is None or name in self._loss) for name, item in here]
        n_given = len(self.task.conditions)
        return [
            Segment(name, self._tokens(name, index), i >= n_given if self._loss is None else name in self._loss)
            for i, name in enumerate(self.task.modalities)
        ]


def holds(dataset: Dataset, task: Task) -> bool:
    """Whether a dataset is of the kind that a task needs, and has its modalities."""
    return dataset.manifest.documents if task.interleaved else set(task.modalities) <= set(dataset.modalities)


def places(task: Task, split: Split) -> NDArray[np.int64]:
    """Indices of the examples of a split that a task can take; of documents those with one segment of each modality.

    A task without conditions takes all segments of its modality, and `interleaved` takes whole documents, empty ones
    left out.
    """
    if task.interleaved:
        counts = np.sum([split.counts(name) for name in split.modalities], axis=0)
        return np.flatnonzero(counts * split.documents)
    found = split.having(task.modalities)
    if split.documents and task.conditions:
        single = np.all([split.counts(name)[found] == 1 for name in task.modalities], axis=0)
        found = found[single]
    return found


def _none(task: Task, split: Split) -> str:
    """Why a task has no examples in a split."""
    if task.interleaved:
        return f"{split.path}: holds no documents, which the task `interleaved` takes; name tasks such as a -> b"
    each = ", ".join(f"{len(split.having([name]))} {name}" for name in split.modalities)
    hint = "; documents, of which the task `interleaved` takes every segment" if split.documents else ""
    return f"{split.path}: none of {len(split)} examples has all that task {str(task)!r} needs (there are {each}){hint}"
