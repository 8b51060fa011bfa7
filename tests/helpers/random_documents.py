"""Random documents of every kind of modality, and layouts that take them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from numpy.typing import NDArray

from helpers.example_batch import TOWERS, Whole
from zippkit.batch.batch import Segment
from zippkit.plan.sequence_layout import Insert, Modality, SequenceLayout, turns
from zippkit.spec.kinds import Frame


class Ear(Whole):
    """A tower that is fed with frames of three floats, of which two make a state."""

    continuous: ClassVar[bool] = True

    def n_states(self, values: NDArray[np.float32]) -> int:
        if values.ndim != 2 or len(values) < 2:
            raise ValueError(f"expected two frames or more, got {values.shape}")
        return len(values) // 2


EARED = TOWERS | {"ear": Ear(dim=4, n_layers=1)}
INSERTS = (
    Insert("speech", "text", lambda n: -(-n // 2)),
    Insert("speech", "text", lambda n: 1),
    Insert("image", "text", lambda n: 2),
    Insert("ear", "speech", lambda n: n),
    Insert("ear", "text", lambda n: 1),
)
LAYOUTS = st.builds(
    SequenceLayout,
    inserts=st.lists(st.sampled_from(INSERTS), max_size=3, unique=True).map(tuple),
    clocks=st.sampled_from([frozenset(), frozenset({frozenset(("text", "speech"))})]),
    shared=st.sampled_from([frozenset[str](), frozenset(("text", "speech"))]),
    hosted=st.sampled_from([{}, {"units": Modality("text", 100, 12, Frame(begin=10, end=11))}]),
    tells_next=st.booleans(),
)
KINDS: list[Any] = [list, tuple, np.array, torch.tensor, lambda ids: np.array(ids, "uint16"), lambda ids: ids]


@st.composite
def segment(draw: DrawFn, name: str, n: int) -> Segment:
    if name == "ear":
        frames = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(n + 2, 3))
        return Segment(name, frames, draw(st.booleans()))
    ids = draw(st.lists(st.integers(0, 9 if name == "units" else 89), min_size=n, max_size=n))
    return Segment(name, draw(st.sampled_from(KINDS))(ids), draw(st.booleans()))


@st.composite
def compositions(draw: DrawFn) -> tuple[SequenceLayout, list[list[Segment]]]:
    """A layout, and documents that it can lay out."""
    layout = draw(LAYOUTS)
    known = sorted(layout.modalities(EARED))
    documents = []
    for _ in range(draw(st.integers(1, 4))):
        names = draw(st.lists(st.sampled_from(known), max_size=6))
        taken = [(turn, draw(st.integers(0, 5))) for turn in turns(names, layout)]
        documents.append([draw(segment(name, n)) for turn, n in taken for name in turn])
    return layout, documents
