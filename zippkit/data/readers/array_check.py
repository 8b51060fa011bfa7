"""Whether records go together: one kind of content for a modality, ids that are ids, frames of one shape."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippkit.data.records import Picture, Record, Sound, Source


def with_trouble(records: Sequence[Record]) -> list[Record]:
    """The records; ``trouble`` says of each why it does not go with the others, or holds no proper ids or features."""
    usual = _usual(records)
    checked = []
    for record in records:
        found = [problem for name, source in record.sources() for problem in _problems(name, source, usual[name])]
        checked.append(replace(record, trouble=(*record.trouble, *found)) if found else record)
    return checked


def kind_of(source: Source) -> str:
    """What a source is, in one word or two."""
    if isinstance(source, str):
        return "text"
    if isinstance(source, Sound | Picture):
        return "sound" if isinstance(source, Sound) else "a picture"
    if np.issubdtype(source.dtype, np.integer):
        return "a picture" if source.ndim == 2 else "ids"
    return "features"


def _usual(records: Sequence[Record]) -> dict[str, dict[str, Hashable]]:
    """Modality to its most frequent kind, and to the most frequent shape of its frames; the first wins a tie."""
    kinds: dict[str, Counter[Hashable]] = defaultdict(Counter)
    shapes: dict[str, Counter[Hashable]] = defaultdict(Counter)
    for record in records:
        for name, source in record.sources():
            kinds[name][kind_of(source)] += 1
            if isinstance(source, np.ndarray) and kind_of(source) == "features" and source.ndim:
                shapes[name][source.shape[1:]] += 1
    return {
        name: {"kind": found.most_common(1)[0][0], "frame": next((s for s, _ in shapes[name].most_common(1)), None)}
        for name, found in kinds.items()
    }


def _problems(name: str, source: Source, usual: dict[str, Hashable]) -> Iterator[str]:
    kind = kind_of(source)
    if kind != usual["kind"]:
        yield f"{name} is {kind}, expected {usual['kind']} as in most others"
    elif isinstance(source, np.ndarray):
        yield from _ids(name, source) if kind == "ids" else _features(name, source, usual["frame"])


def _ids(name: str, ids: NDArray[Any]) -> Iterator[str]:
    if ids.ndim != 1:
        yield f"{name} is an array of integers of shape {ids.shape}, expected ids in one dimension"
    elif ids.size and ids.min() < 0:
        yield f"{name} has id {ids.min()} at index {int(ids.argmin())}, expected 0 or more"


def _features(name: str, frames: NDArray[Any], shape: Hashable) -> Iterator[str]:
    if np.issubdtype(frames.dtype, np.integer):
        return  # grey levels, which the tokenizer of pixels looks at
    if not np.issubdtype(frames.dtype, np.floating) or not frames.ndim:
        yield f"{name} is an array of {frames.dtype} of shape {frames.shape}, expected integers, or frames of floats"
    elif frames.shape[1:] != shape:
        yield f"{name} has frames of shape {frames.shape[1:]}, expected {shape} as in most others"
    elif not np.isfinite(frames).all():
        place = np.argwhere(~np.isfinite(frames))[0].tolist()
        yield f"{name} has {frames[tuple(place)]} at {place}, expected finite numbers"
