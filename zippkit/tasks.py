"""A dataset seen through tasks: which segments an example gives, and which of them carry the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippkit.batch import Segment
from zippkit.config import TowerConfig
from zippkit.data.dataset import Dataset
from zippkit.data.table import Example, Split
from zippkit.errors import DataError, did_you_mean
from zippkit.layout import Modality
from zippkit.recipe import Task


def check_tokenizers(
    dataset: Dataset, wanted: Mapping[str, Modality], fingerprints: Mapping[str, str | None] | None = None
) -> None:
    """Refuse data whose tokens are not those of the towers.

    Args:
        dataset: where the tokens come from.
        wanted: what the towers read, by name.
        fingerprints: of the tokenizers that a model was trained with, by modality.

    Raises:
        DataError: a modality is missing, a vocabulary or frame differs, or another tokenizer made the tokens.
    """
    modalities = dataset.manifest.modalities
    for name, modality in wanted.items():
        if name not in modalities:
            raise DataError(f"{dataset.path}: no modality is called {name!r}{did_you_mean(name, modalities)}")
        tokens = modalities[name]
        if modality.vocab_size is not None and tokens.vocab_size > modality.vocab_size:
            hosted = f"towers.{modality.tower}.extend_vocabulary.{name}"
            key = f"towers.{name}.config.vocab_size" if name == modality.tower else hosted
            raise DataError(
                f"{dataset.path}: {name} has {tokens.vocab_size} token ids, the tower {modality.vocab_size}; expected "
                f"{key}: {tokens.vocab_size}"
            )
        frame = (modality.frame.begin, modality.frame.end) if modality.frame else None
        if tokens.begin is not None and frame != (tokens.begin, tokens.end):
            raise DataError(
                f"{dataset.path}: {name} begins with {tokens.begin} and ends with {tokens.end}, the tower's frame is "
                f"{frame}; expected towers.{name}.frame: {{begin: {tokens.begin}, end: {tokens.end}}}"
            )
        if fingerprints and fingerprints.get(name) != tokens.fingerprint:
            raise DataError(
                f"{dataset.path}: its {name} tokens were made by another tokenizer ({_short(tokens.fingerprint)}) than "
                f"the model was trained with ({_short(fingerprints.get(name))}); prepare the data with the run's own"
            )


def _short(fingerprint: str | None) -> str:
    return fingerprint[:12] if fingerprint else "none"


class TaskData:
    """One task over one split: those of its examples that have all of the task's modalities."""

    def __init__(self, task: Task, dataset: Dataset, split: Split) -> None:
        """Look which examples there are, and turn their text into ids.

        Raises:
            DataError: no example has all of the task's modalities.
        """
        self.task = task
        self._split = split
        self._places = split.having(task.modalities)
        if not len(self._places):
            known = dataset.manifest.modalities
            each = ", ".join(f"{len(split.having([name]))} {name}" for name in known)
            raise DataError(
                f"{split.path}: none of {len(split)} examples has all that task {str(task)!r} needs (there are {each})"
            )
        self.names = [split[int(place)].id for place in self._places]
        # Text is turned into ids once; units are ids already.
        self._texts: dict[str, list[list[int]]] = {}
        for name in task.modalities:
            if dataset.manifest.modalities[name].is_text:
                encode = dataset.text_tokenizer(name).encode
                self._texts[name] = [encode(str(self.example(i).items[name])) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self._places)

    def example(self, index: int) -> Example:
        """The example as the dataset has it."""
        return self._split[int(self._places[index])]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each example in its longest modality."""
        longest: NDArray[np.int64] = np.max([self._lengths(name) for name in self.task.modalities], axis=0)
        return longest

    def _lengths(self, name: str) -> NDArray[np.int64]:
        if name in self._texts:
            return np.array([len(ids) for ids in self._texts[name]], dtype=np.int64)
        return self._split.lengths(name)[self._places]

    def check_lengths(self, towers: Mapping[str, TowerConfig]) -> None:
        """Look for sequences that a tower cannot take, before anything is computed.

        Raises:
            DataError: names the longest.
        """
        for name in dict.fromkeys(self.task.modalities):
            # Each segment comes with its begin and end id.
            lengths = self.task.modalities.count(name) * (self._lengths(name) + 2)
            limit = towers[name].max_len
            n_long = int((lengths > limit).sum()) if limit is not None else 0
            if n_long:
                longest = int(lengths.argmax())
                raise DataError(
                    f"{self._split.path}: example {self.names[longest]} has {lengths[longest]} {name} tokens, and "
                    f"{n_long} of {len(self)} examples have more than the {limit} that the tower takes"
                )

    def ids(self, indices: Sequence[int]) -> tuple[str, ...]:
        """Names of examples."""
        return tuple(self.names[i] for i in indices)

    def _tokens(self, name: str, index: int) -> Any:
        return self._texts[name][index] if name in self._texts else self.example(index).items[name]

    def prompt(self, index: int) -> list[Segment]:
        """The segments that are given."""
        return [Segment(name, self._tokens(name, index), loss=False) for name in self.task.conditions]

    def segments(self, index: int) -> list[Segment]:
        """The whole example, with the loss on the target."""
        return [*self.prompt(index), *(Segment(name, self._tokens(name, index)) for name in self.task.targets)]
