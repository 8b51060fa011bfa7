"""Three towers and the design's worked example, laid out as a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from hypothesis import strategies as st

from zippkit.batch.batch import COLUMNS, Segment
from zippkit.batch.collate import collate
from zippkit.plan.sequence_layout import SequenceLayout
from zippkit.spec.kinds import Frame, TowerConfig


class Whole(TowerConfig):
    """A tower whose tokens see their whole segment."""

    causal: ClassVar[bool] = False


def config(begin: int, end: int, cls: type[TowerConfig] = TowerConfig, **more: Any) -> TowerConfig:
    return cls(dim=4, n_layers=1, frame=Frame(begin=begin, end=end), **{"vocab_size": 100, **more})


TOWERS = {"text": config(90, 91), "speech": config(92, 93), "image": config(94, 95, Whole)}
A, B, C = 10, 11, 12
EXAMPLE = [Segment("text", [A, B]), Segment("speech", [7, 8]), Segment("text", [C])]

SEGMENTS = st.lists(
    st.builds(Segment, st.sampled_from(list(TOWERS)), st.lists(st.integers(0, 89), max_size=4), st.booleans()),
    max_size=6,
)


def columns(
    segments: Sequence[Segment], towers: Mapping[str, TowerConfig], layout: SequenceLayout | None = None
) -> dict[str, dict[str, list[Any]]]:
    """Each tower's columns of one row, as lists."""
    made = collate([segments], towers, layout=layout).towers
    return {name: {each: getattr(tower, each)[0].tolist() for each in COLUMNS} for name, tower in made.items()}
