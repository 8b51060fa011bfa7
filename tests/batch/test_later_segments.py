"""What a position may know: not what a later segment says, and not that there is one (design, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import zippkit
from helpers.compositions import link, make_spec, randomise, tower
from helpers.greedy import sharp
from zippkit.batch.batch import Batch, Segment
from zippkit.batch.interleave import Interleaving, Run
from zippkit.composition import Composition
from zippkit.evaluation.certificates import verify
from zippkit.generation.api import generate_batch, stream
from zippkit.spec.part_sections import Next

pytestmark = pytest.mark.slow

IMAGE, SPEECH, TEXT = Segment("image", [1, 2, 3]), Segment("speech", [4, 5]), Segment("text", [3, 4])
PREFIXES: dict[str, dict[str, Any]] = {
    "prefix": {"kind": "prefix", "config": {"stack": 2}},
    "resampler": {"kind": "resampler", "config": {"queries": 2, "depth": 1, "n_heads": 2, "output": "prefix"}},
}
READERS: dict[str, dict[str, Any]] = {
    "cross_attention": link("text", "speech", kind="cross_attention", every=1, config={"n_heads": 2}),
    "gated_cross_attention": link("text", "speech", every=1),
    "prefix": {"kind": "prefix", "from": "text", "into": "speech"},
    "joint_attention": {"kind": "joint_attention", "from": "text", "into": "speech", "every": 1},
}


def built(prefix: str = "prefix", reader: str = "cross_attention", projection: bool = False) -> Composition:
    more = {"input_projection": {"residual": False}} if projection else {}
    towers = {name: tower(2, 8, 8, {"tied": False}, **more) for name in ("image", "speech", "text")}
    spec = make_spec(towers, [{"from": "image", "into": "text", **PREFIXES[prefix]}, READERS[reader]])
    zipped = zippkit.compile(spec.model_copy(update={"next": Next()}))
    randomise(zipped.model)
    return sharp(zipped)


built = cache(built)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("reader", READERS)
@torch.no_grad()
def test_nothing_changes_when_a_target_s_segment_follows(prefix: str, reader: str) -> None:
    """Neither the logits, nor what the model tells comes next: a place is not there before its segment is."""
    zipped = built(prefix, reader)
    without, with_text = (zipped.model(zipped.collate([row])) for row in ([IMAGE, SPEECH], [IMAGE, SPEECH, TEXT]))
    for name in ("image", "speech", "next.image", "next.speech"):
        n = without[name].shape[1]
        assert torch.allclose(without[name], with_text[name][:, :n], rtol=0, atol=1e-12), name
    # Once the text is there, what comes after it sees the places too.
    after, other = (
        zipped.model(zipped.collate([[Segment("image", first), SPEECH, TEXT, SPEECH]]))["speech"][0, -4:]
        for first in ([1, 2, 3], [3, 2, 1])
    )
    assert not torch.allclose(after, other), "or nothing is shown"


def old_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places have the order of the end of the segment that they stand for."""
    original = Interleaving._insert

    def insert(self: Any, tower: str) -> None:
        n_waiting = len(self._waiting.get(tower, []))
        original(self, tower)
        here = len(self.n_orders)
        for i, run in list(enumerate(self.runs[tower]))[len(self.runs[tower]) - n_waiting :]:
            (end,) = (
                other.order + (other.length - 1) * other.order_step
                for runs in self.runs.values()
                for other in map(Run._make, runs)
                if (other.document, other.segment) == (here, run.segment) and not other.inserted
            )
            self.runs[tower][i] = run._replace(order=end, visible=end)

    monkeypatch.setattr(Interleaving, "_insert", insert)


def derived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows pass the input projections if several modalities occur anywhere in them."""
    original = Composition.collate

    def collate(self: Composition, examples: Sequence[Sequence[Segment]], *args: Any, **more: Any) -> Batch:
        flags = [len({segment.tower for segment in example}) > 1 for example in examples]
        return original(self, examples, *args, **{**more, "multimodal": flags})

    monkeypatch.setattr(Composition, "collate", collate)


@pytest.mark.parametrize(
    ("plant", "prefix", "projection"),
    [(old_places, "prefix", False), (old_places, "resampler", False), (derived, "prefix", True)],
)
def test_the_first_certificate_sees_it(
    plant: Callable[[pytest.MonkeyPatch], None], prefix: str, projection: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped = zippkit.compile(built(prefix, projection=projection).spec)
    assert verify(zipped, only=["C1"]).passed
    plant(monkeypatch)
    (first,) = verify(zipped, only=["C1"]).certificates
    assert not first.passed
    assert "is cut off, first at" in first.detail, first.detail


@torch.inference_mode()
def test_what_a_model_computes_while_it_chooses_is_what_it_was_trained_on() -> None:
    """With input projections, rows that end with one modality included."""
    zipped = built(projection=True)
    prompts = [[Segment(name, [i])] for name in ("speech", "text", "image") for i in range(4)]
    seen: list[list[tuple[str, int, int, Tensor]]] = [[] for _ in prompts]

    def watch(name: str, places: dict[int, tuple[int, int]], logits: Tensor) -> None:
        for row, (segment, n_fed) in places.items():
            seen[row].append((name, segment, n_fed - 1, logits[row]))

    generation = stream(zipped, prompts, "auto", 2, watch=watch)
    for _ in generation:
        pass
    for prompt, new, steps in zip(prompts, generation.segments, seen, strict=True):
        whole = zipped.collate([[*prompt, *new]])
        logits = zipped.model(whole)
        for name, segment, offset, found in steps:
            tokens = whole.towers[name]
            own = (tokens.segment[0] == segment) & (tokens.offset[0] == offset) & ~tokens.inserted[0]
            assert torch.allclose(found, logits[name][0, own.nonzero()[0, 0]], rtol=0, atol=1e-9)
    kinds = {
        frozenset(segment.tower for segment in (*p, *new)) for p, new in zip(prompts, generation.segments, strict=True)
    }
    assert min(map(len, kinds)) == 1 < max(map(len, kinds)), "rows of one modality and of several, or little is shown"


@torch.inference_mode()
def test_an_empty_prompt_beside_others_where_the_model_tells_what_comes_next() -> None:
    zipped = built()
    rows: list[list[Segment]] = [[], [IMAGE], [TEXT, SPEECH], []]
    found = generate_batch(zipped, rows, ["speech", "text"], 3)
    assert found == [generate_batch(zipped, [row], ["speech", "text"], 3)[0] for row in rows]
    following = zipped.collate([[], [TEXT]]).towers["text"].following
    assert following is not None and following.tolist() == [[-100] * 4, [-100] * 3 + [3]]


def test_decoding_step_by_step_is_the_whole_where_the_model_tells_what_comes_next() -> None:
    report = verify(zippkit.compile(built().spec), only=["C4"])
    assert report.passed, str(report)
