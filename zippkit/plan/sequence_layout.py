"""The layout of a sequence that a composition asks for: inserted slots, simultaneous tokens, hosted modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from zippkit.spec.kinds import Frame, Frames, Image, Sound, TowerConfig


@dataclass(frozen=True)
class Insert:
    """A link that puts its source's segments into the target's own sequence."""

    source: str
    target: str
    n_slots: Callable[[int], int]
    """Tokens of a segment of the source, begin and end included, to the slots that it takes in the target."""


@dataclass(frozen=True)
class Modality:
    """A run of a tower's vocabulary, with a begin and an end of its own."""

    tower: str
    first_id: int
    """Offset that is added to the modality's ids, frame included."""
    vocab_size: int | None
    frame: Frame | None
    continuous: bool = False
    """Whether the tower is fed with floats instead of ids."""
    feed: Sound | Image | Frames | None = None
    """The kind of floats, where it tells."""


@dataclass(frozen=True)
class SequenceLayout:
    """How segments become each tower's own tokens."""

    inserts: tuple[Insert, ...] = ()
    shared: frozenset[str] = frozenset()
    """Towers that share their attention, so that their position ids count through the whole interleaved sequence."""
    clocks: frozenset[frozenset[str]] = frozenset()
    """Pairs of towers whose neighbouring segments are simultaneous."""
    hosted: Mapping[str, Modality] = field(default_factory=dict)
    """Modalities by which a tower's vocabulary was extended."""
    tells_next: bool = False
    """Whether the model learns which modality comes after a segment."""

    def modalities(self, towers: Mapping[str, TowerConfig]) -> dict[str, Modality]:
        """Everything that a segment can be of: the towers' own modalities, and those that they host."""
        own = {
            name: Modality(name, 0, config.vocab_size, config.frame, config.continuous, config.feed)
            for name, config in towers.items()
        }
        return own | dict(self.hosted)

    def simultaneous(self, one: str, other: str) -> bool:
        """Whether neighbouring segments of these towers advance together."""
        return frozenset((one, other)) in self.clocks


def turns(names: Sequence[str], layout: SequenceLayout) -> list[tuple[str, ...]]:
    """Group a run of segments into turns: one modality at a time, or two neighbours with one clock."""
    if not layout.clocks:
        return [(name,) for name in names]
    found: list[tuple[str, ...]] = []
    for name in names:
        if found and len(found[-1]) == 1 and layout.simultaneous(found[-1][0], name):
            found[-1] = (found[-1][0], name)
        else:
            found.append((name,))
    return found
