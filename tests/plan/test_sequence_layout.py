"""What links ask of a sequence: inserted places, simultaneous tokens, hosted modalities, places in the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.example_batch import columns, config
from zippkit.batch.batch import IGNORE, Segment, TowerBatch
from zippkit.batch.collate import collate
from zippkit.batch.describe import describe_cross
from zippkit.batch.masks import cross_mask
from zippkit.errors import DataError
from zippkit.plan.sequence_layout import Insert, Modality, SequenceLayout, turns
from zippkit.spec.kinds import Frame

TOWERS = {"text": config(90, 91), "speech": config(92, 93), "image": config(94, 95)}
HALVED = SequenceLayout(inserts=(Insert("speech", "text", lambda n: -(-n // 2)),))
CLOCK = SequenceLayout(clocks=frozenset({frozenset(("text", "speech"))}))
SHARED = SequenceLayout(shared=frozenset(("text", "speech")))
HOSTED = SequenceLayout(hosted={"units": Modality("text", 100, 12, Frame(begin=10, end=11))})


def test_a_segment_takes_places_before_the_target_s_next_token() -> None:
    """Three tokens and their frame, two by two, are three places, and are of the order of the segment after them."""
    rows = columns([Segment("text", [1]), Segment("speech", [7, 8, 9]), Segment("text", [2])], TOWERS, layout=HALVED)
    text = rows["text"]
    assert text["tokens"] == [90, 1, 91, 91, 91, 91, 90, 2, 91]
    assert text["inserted"] == [False] * 3 + [True] * 3 + [False] * 3
    assert text["order"] == [0, 1, 2, 8, 8, 8, 8, 9, 10]
    assert text["visible"] == text["order"]
    assert text["segment"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert text["offset"] == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert text["positions"] == text["position_ids"] == list(range(9))
    assert text["targets"] == [1, 91, *[IGNORE] * 4, 2, 91, IGNORE]
    assert rows["speech"]["inserted"] == [False] * 5


def test_places_wait_for_a_token_that_follows() -> None:
    after = [Segment("text", [1]), Segment("speech", [7])]
    assert len(columns(after, TOWERS, layout=HALVED)["text"]["tokens"]) == 3
    assert "text" not in columns([Segment("speech", [7])], TOWERS, layout=HALVED)


def test_nobody_between_a_segment_and_its_places_sees_them() -> None:
    """Of two that begin at once, the other sees them with the first token."""
    row = [Segment("speech", [7]), Segment("image", [5]), Segment("text", [1]), Segment("image", [6])]
    rows = columns(row, TOWERS, layout=HALVED)
    places = {order for order, there in zip(rows["text"]["visible"], rows["text"]["inserted"], strict=True) if there}
    between, after = rows["image"]["order"][:3], rows["image"]["order"][3:]
    assert places == {6} and max(between) == 5 and min(after) == 9
    layout = SequenceLayout(inserts=HALVED.inserts, clocks=CLOCK.clocks)
    both = columns([*row[:3], Segment("speech", [2])], TOWERS, layout=layout)
    assert both["text"]["order"] == [6, 6, 7, 9, 11] and both["text"]["visible"] == [6, 6, 6, 8, 10]
    assert both["speech"]["order"] == [0, 1, 2, 7, 9, 11]


def test_inserted_places_count_towards_the_longest_sequence() -> None:
    short = TOWERS | {"text": config(90, 91, max_len=5)}
    rows = [Segment("speech", [7, 8, 9]), Segment("text", [1])]
    with pytest.raises(DataError, match="6 text tokens; the tower takes at most 5"):
        collate([rows], short, layout=HALVED)
    assert collate([rows], short | {"text": config(90, 91, max_len=6)}, layout=HALVED).towers["text"].tokens.shape == (
        1,
        6,
    )


def test_simultaneous_tokens_see_each_other_up_to_the_same_time() -> None:
    batch = collate([[Segment("text", [1, 2]), Segment("speech", [7, 8])]], TOWERS, layout=CLOCK)
    text, speech = batch.towers["text"], batch.towers["speech"]
    for one, other in ((text, speech), (speech, text)):
        assert torch.equal(cross_mask(one.order, other.visible)[0], torch.ones(4, 4).bool().tril())
    assert batch.sees == {("text", "speech"), ("speech", "text")}


def test_simultaneous_segments_are_of_one_length() -> None:
    with pytest.raises(DataError, match=r"segments 1 and 2: text and speech are simultaneous .* 2 and 1 tokens"):
        collate([[Segment("image", [1]), Segment("text", [1, 2]), Segment("speech", [7])]], TOWERS, layout=CLOCK)


def test_only_neighbours_are_simultaneous() -> None:
    assert turns(["text", "speech", "speech", "image", "text"], CLOCK) == [
        ("text", "speech"),
        ("speech",),
        ("image",),
        ("text",),
    ]


def test_a_hosted_modality_stands_behind_the_tower_s_own_ids() -> None:
    batch = collate([[Segment("units", [0, 9]), Segment("text", [3])]], TOWERS, layout=HOSTED)
    assert batch.towers.keys() == {"text"}
    assert batch.towers["text"].tokens.tolist() == [[110, 100, 109, 111, 90, 3, 91]]
    assert batch.towers["text"].targets.tolist() == [[100, 109, 111, IGNORE, 3, 91, IGNORE]]
    assert batch.multimodal is True
    with pytest.raises(DataError, match="token 12 is outside the vocabulary of 12"):
        collate([[Segment("units", [12])]], TOWERS, layout=HOSTED)
    with pytest.raises(DataError, match="no tower is called 'unit'; did you mean 'units'"):
        collate([[Segment("unit", [1])]], TOWERS, layout=HOSTED)


def test_towers_that_share_attention_count_places_in_the_whole_sequence() -> None:
    rows = columns([Segment("text", [1]), Segment("image", [4]), Segment("speech", [7])], TOWERS, layout=SHARED)
    assert rows["speech"]["position_ids"] == rows["speech"]["order"] == [6, 7, 8]
    assert rows["speech"]["positions"] == [0, 1, 2]
    assert rows["image"]["position_ids"] == rows["image"]["positions"]


LAYOUTS = st.builds(
    SequenceLayout,
    inserts=st.sampled_from([(), HALVED.inserts, (*HALVED.inserts, Insert("image", "text", lambda n: 2))]),
    clocks=st.sampled_from([frozenset(), CLOCK.clocks]),
    shared=st.sampled_from([frozenset[str](), SHARED.shared]),
)
ROWS = st.lists(
    st.lists(st.tuples(st.sampled_from(sorted(TOWERS)), st.just(2)), min_size=1, max_size=6), min_size=1, max_size=3
)


@settings(max_examples=150)
@given(layout=LAYOUTS, rows=ROWS, multiple=st.sampled_from([1, 5]))
def test_whatever_the_layout_masks_agree_and_nobody_sees_the_future(
    layout: SequenceLayout, rows: list[list[tuple[str, int]]], multiple: int
) -> None:
    batch = collate([[Segment(name, [5] * n) for name, n in row] for row in rows], TOWERS, multiple, layout=layout)
    for target_name, target in batch.towers.items():
        real = target.order >= 0
        assert ((target.order.diff(dim=1) >= 0) | ~real[:, 1:]).all(), "orders never fall along a row"
        assert (target.visible <= target.order).all()
        for source_name, source in batch.towers.items():
            if source_name == target_name:
                continue
            mask = cross_mask(target.order, source.visible)
            assert torch.equal(mask, describe_cross(target, source).dense())
            assert bool(mask.any()) == ((target_name, source_name) in batch.sees)
            # What is seen began earlier, or at the same time where two segments are simultaneous.
            later = source.segment[:, None, :] > of_segment(target)[:, :, None]
            assert layout.simultaneous(target_name, source_name) or not (mask & later).any()


def of_segment(tokens: TowerBatch) -> torch.Tensor:
    """(B, T) the segment that a place belongs to: if it is inserted, the one that it stands before."""
    found = tokens.segment.clone()
    for row, inserted in zip(found, tokens.inserted, strict=True):
        for i in reversed(range(len(row) - 1)):
            row[i] = row[i + 1] if inserted[i] else row[i]
    return found


def test_parts_and_joins_of_a_batch_are_the_batch() -> None:
    tokens = collate([[Segment("text", [1, 2, 3])]], TOWERS).towers["text"]
    joined = TowerBatch.join([tokens.part(slice(0, 2)), tokens.part(slice(2, None))])
    for name in ("tokens", "order", "segment", "inserted", "targets"):
        assert torch.equal(getattr(joined, name), getattr(tokens, name))
