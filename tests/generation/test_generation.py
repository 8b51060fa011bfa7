"""Cached generation against the whole forward, token by token, and the work that it does not do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.compositions import link, make, tower
from helpers.greedy import sharp, two
from zippkit.batch.batch import Segment, TowerBatch
from zippkit.composition import Composition
from zippkit.errors import DataError, ZippkitError
from zippkit.generation.api import generate, generate_batch, stream
from zippkit.model.run_tower import tower_logits
from zippkit.plan.plan import Wanted
from zippkit.spec.sampling import Sampling
from zippkit_towers.decoder.config import DecoderConfig

pytestmark = pytest.mark.slow

MAX_LEN = 15


@cache
def chain() -> Composition:
    """Three towers, each of which reads the one before it, and the last one both."""
    towers = {name: tower(2, 8, 8, {"tied": False}) for name in ("video", "speech", "text")}
    links = [link(a, b, every=1) for a, b in (("video", "speech"), ("speech", "text"), ("video", "text"))]
    return sharp(make(towers, links))


@torch.inference_mode()
def naive(zipped: Composition, prompt: Sequence[Segment], outputs: Sequence[str], max_tokens: int) -> list[Segment]:
    """What generation is defined as: for each new token, the whole sequence once more."""
    row = list(prompt)
    for turn, name in enumerate(outputs):
        config = zipped.graph.towers[name]
        assert config.frame is not None
        room = max_tokens
        if config.max_len is not None:
            used = sum(len(segment.tokens) + 2 for segment in row if segment.tower == name)
            room = min(room, config.max_len - used - 2 * outputs[turn:].count(name))
        tokens: list[int] = []
        while len(tokens) < room:
            # The end that closes the segment comes after the place that is looked at.
            batch = zipped.collate([[*row, Segment(name, tokens)]])
            plan = zipped.plan.prune(Wanted(heads={name}, sees=batch.sees))
            logits = zipped.model.run(plan, batch.towers, batch.multimodal)[name][0]
            token = int(logits[-2].argmax())
            if token == config.frame.end:
                break
            tokens.append(token)
        row.append(Segment(name, tokens))
    return row[len(prompt) :]


def prompts(names: Sequence[str], longest: int = 4) -> st.SearchStrategy[list[list[Segment]]]:
    tokens = st.lists(st.integers(0, 4), max_size=longest)
    segment = st.builds(Segment, st.sampled_from(names), tokens)
    return st.lists(st.lists(segment, max_size=3), min_size=1, max_size=3)


def outputs(names: Sequence[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), min_size=1, max_size=3)


@settings(max_examples=40)
@given(prompts(["text", "speech"]), outputs(["text", "speech"]), st.integers(0, 5))
def test_cached_generation_is_the_whole_forward_token_by_token(
    rows: list[list[Segment]], wanted: list[str], max_tokens: int
) -> None:
    found = generate_batch(two(), rows, wanted, max_tokens)
    assert found == [naive(two(), row, wanted, max_tokens) for row in rows]


@settings(max_examples=20)
@given(prompts(["video", "speech", "text"]), outputs(["video", "speech", "text"]))
def test_towers_in_a_chain(rows: list[list[Segment]], wanted: list[str]) -> None:
    assert generate_batch(chain(), rows, wanted, 4) == [naive(chain(), row, wanted, 4) for row in rows]


@settings(max_examples=30)
@given(prompts(["text", "speech"], longest=3), outputs(["text", "speech"]), st.integers(0, 12))
def test_where_a_tower_s_longest_sequence_ends_a_segment(
    rows: list[list[Segment]], wanted: list[str], max_tokens: int
) -> None:
    """For each row by itself: a longer row beside it takes nothing away."""
    zipped = two(MAX_LEN)
    used = {name: max(sum(len(s.tokens) + 2 for s in row if s.tower == name) for row in rows) for name in wanted}
    if any(n_tokens + 2 * wanted.count(name) > MAX_LEN for name, n_tokens in used.items()):
        with pytest.raises(DataError, match="the tower takes at most 15"):
            generate_batch(zipped, rows, wanted, max_tokens)
        return
    found = generate_batch(zipped, rows, wanted, max_tokens)
    assert found == [naive(zipped, row, wanted, max_tokens) for row in rows]
    for row, new in zip(rows, found, strict=True):
        zipped.collate([[*row, *new]])


def test_no_cache_is_larger_and_no_position_further_than_the_longest_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even those of rows that are complete, while others go on."""
    zipped = two(MAX_LEN)
    module: Any = zipped.model.tower("text")
    start, new_cache = module.start, module.new_cache
    furthest, largest = [], []
    monkeypatch.setattr(
        module, "start", lambda inputs, *more: furthest.append(inputs.positions.max()) or start(inputs, *more)
    )
    monkeypatch.setattr(module, "new_cache", lambda n, size: largest.append(size) or new_cache(n, size))
    rows = [[Segment("text", [1] * length)] for length in (11, 0, 4)]
    generate_batch(zipped, rows, ["text", "speech"], 1000)
    assert max(furthest) == MAX_LEN - 1
    assert largest == [MAX_LEN]


@pytest.mark.parametrize("wanted", [["text"], ["speech"], ["text", "speech", "text"], ["speech", "speech"]])
def test_rows_of_every_kind_beside_each_other(wanted: list[str]) -> None:
    rows = [
        [Segment("speech", [1, 2, 3, 4, 0, 1]), Segment("text", [2])],
        [],
        [Segment("text", [3, 1, 2])],
        [Segment("speech", torch.tensor([4]))],
        [Segment("speech", [])],
    ]
    found = generate_batch(two(), rows, wanted, 8)
    assert found == [generate(two(), row, wanted, 8) for row in rows]
    assert found == [naive(two(), row, wanted, 8) for row in rows]
    assert [[segment.tower for segment in row] for row in found] == [wanted] * len(rows)


ORDERS = st.lists(st.sampled_from(["text", "speech"]), max_size=3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(prompts(["text", "speech"]).map(lambda rows: rows[0]), ORDERS), min_size=1, max_size=4))
def test_rows_in_different_modalities_at_the_same_time(rows: list[tuple[list[Segment], list[str]]]) -> None:
    given, wanted = [row for row, _ in rows], [names for _, names in rows]
    found = generate_batch(two(), given, wanted, 4)
    assert found == [naive(two(), row, names, 4) if names else [] for row, names in rows]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["video", "speech", "text"]), max_size=4), min_size=2, max_size=4))
def test_rows_of_a_chain_in_different_modalities(wanted: list[list[str]]) -> None:
    given = [[Segment("video", [i, 2, 1])] for i in range(len(wanted))]
    found = generate_batch(chain(), given, wanted, 3)
    assert found == [naive(chain(), row, names, 3) for row, names in zip(given, wanted, strict=True)]


def test_tokens_come_as_they_are_chosen() -> None:
    rows = [[Segment("speech", [1, 2])], [], [Segment("text", [3, 3, 3])]]
    generation = stream(two(), rows, ["text", "speech"], 5)
    heard: dict[tuple[int, int], list[int | None]] = {}
    for piece in generation:
        assert piece.modality == ["text", "speech"][piece.segment]
        heard.setdefault((piece.row, piece.segment), []).append(piece.token)
        so_far = generation.segments[piece.row]
        assert [*so_far[piece.segment].tokens] == [t for t in heard[piece.row, piece.segment] if t is not None]
    expected = generate_batch(two(), rows, ["text", "speech"], 5)
    assert generation.segments == expected
    for (row, segment), tokens in heard.items():
        assert tokens == [*expected[row][segment].tokens, None]


def test_a_row_that_is_cancelled_keeps_what_it_has_and_the_others_go_on() -> None:
    rows = [[Segment("speech", [a, 2])] for a in range(3)]
    expected = generate_batch(two(), rows, ["text", "speech"], 6)
    longest = max(range(3), key=lambda row: len(expected[row][0].tokens))
    assert len(expected[longest][0].tokens) > 2
    generation = stream(two(), rows, ["text", "speech"], 6)
    for piece in generation:
        if piece.row == longest and len(generation.segments[longest][0].tokens) == 2:
            generation.cancel(longest)
            assert [s.tokens for s in generation.segments[longest]] == [expected[longest][0].tokens[:2]]
    assert [s.tokens for s in generation.segments[longest]] == [expected[longest][0].tokens[:2]]
    for row in {0, 1, 2} - {longest}:
        assert generation.segments[row] == expected[row]


def test_the_links_are_heard() -> None:
    """So that the tests above can fail."""
    answers = {str(generate(two(), [Segment("speech", [unit] * 3)], ["text"], 6)) for unit in range(5)}
    assert len(answers) > 2
    answers = {str(generate(chain(), [Segment("video", [a, b])], ["text"], 6)) for a in range(5) for b in range(5)}
    assert len(answers) > 5


def test_segments_end_by_themselves_and_at_the_limit() -> None:
    rows = [[Segment("speech", [a, b])] for a in range(5) for b in range(5)]
    lengths = Counter(len(row[0].tokens) for row in generate_batch(two(), rows, ["text"], 6))
    assert lengths[6] > 0, "some are cut off"
    assert sum(count for length, count in lengths.items() if length < 6) > 0, "some end by themselves"
    assert {len(row[0].tokens) for row in generate_batch(two(), rows, ["text"], 0)} == {0}
    end = two().graph.towers["text"].frame
    assert end is not None
    assert all(end.end not in row[0].tokens for row in generate_batch(two(), rows, ["text"], 6))


def test_a_row_that_is_declared_unimodal_passes_by_the_input_projection() -> None:
    """Beside rows of two modalities, it is the tower alone; undeclared, it is what a row of two begins with."""
    zipped = two()
    alone = Segment("text", [1, 2, 3])
    tokens: list[int] = []
    while len(tokens) < 8:
        inputs = zipped.collate([[alone, Segment("text", tokens)]]).towers["text"]
        token = int(tower_logits(zipped.model.tower("text"), inputs)[0, -2].argmax())
        if token == 7:
            break
        tokens.append(token)
    rows = [[alone], [Segment("speech", [1, 2]), alone]]
    assert generate_batch(zipped, rows, ["text"], 8, multimodal=[False, True])[0] == [Segment("text", tokens)]
    assert generate(zipped, [alone], ["text"], 8, multimodal=False) == [Segment("text", tokens)]
    first, *_ = generate(zipped, [alone], ["text", "speech"], 8)
    assert generate_batch(zipped, rows, ["text"], 8)[0] == [first] != [Segment("text", tokens)]


def test_one_modality_twice_beside_a_longer_row() -> None:
    """Each row has the room that it has alone, in caches that are as long as the longest needs."""
    zipped = two()
    rows = [[], [Segment("text", [i % 5 for i in range(14)])], [Segment("speech", [1, 2])]]
    outputs = [["text", "text", "text"], ["text"], ["text", "speech", "text"]]
    found = generate_batch(zipped, rows, outputs, 6)
    assert found == [generate(zipped, row, names, 6) for row, names in zip(rows, outputs, strict=True)]
    assert found == [naive(zipped, row, names, 6) for row, names in zip(rows, outputs, strict=True)]


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ([False], "prompt 0: declared unimodal (`multimodal=False`), but has segments of speech and text"),
        ([True, False], "multimodal: expected one declaration for each of 1 rows, got 2"),
    ],
)
def test_declarations_that_do_not_fit(declared: list[bool], told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)):
        generate_batch(two(), [[Segment("text", [1])]], ["speech"], multimodal=declared)


class Counted:
    """Counts the calls of layers, writes and tokens written."""

    def __init__(self, zipped: Composition, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        for name in zipped.graph.towers:
            self.count_layers(name, zipped.model.tower(name), monkeypatch)
        for site in zipped.graph.sites:
            self.count_writes(f"{site.link}.{site.index}", zipped.model.link(site), monkeypatch)

    def count_layers(self, name: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        layer = module.layer

        def counted(*arguments: Any) -> Any:
            self.layers[name] += 1
            return layer(*arguments)

        monkeypatch.setattr(module, "layer", counted)

    def count_writes(self, name: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        write = module.write

        def counted(source: torch.Tensor, tokens: TowerBatch) -> Any:
            self.written[name] += int((tokens.order >= 0).sum())
            return write(source, tokens)

        monkeypatch.setattr(module, "write", counted)


def test_only_the_tower_whose_turn_it_is_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    zipped = two()
    counted = Counted(zipped, monkeypatch)
    (answer,) = generate(zipped, [Segment("speech", [1, 2, 3, 4])], ["text"], 6, packed=False)
    # Two layers of text for the begin id and each token; speech once, up to the last state that text reads.
    last_read = max(site.source_depth for site in zipped.graph.sites if site.target == "text")
    assert counted.layers == {"text": 2 * (len(answer.tokens) + 1), "speech": last_read}
    assert counted.written == {"speech_to_text.0": 6, "speech_to_text.1": 6}, "begin and end are read too"


def test_every_source_token_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    zipped = two()
    counted = Counted(zipped, monkeypatch)
    prompt = [Segment("speech", [1, 2]), Segment("text", [3])]
    first, middle, last = generate(zipped, prompt, ["text", "speech", "text"], 5, packed=False)
    n_text = [len(segment.tokens) + 2 for segment in (prompt[1], first)]
    n_speech = [len(segment.tokens) + 2 for segment in (prompt[0], middle)]
    assert counted.written == {
        "text_to_speech.0": sum(n_text),
        "speech_to_text.0": sum(n_speech),
        "speech_to_text.1": sum(n_speech),
    }, "nobody reads the last segment"
    # Where the limit ends the last segment, its last token is not run either.
    steps = (n_text[1] + len(last.tokens) + (len(last.tokens) < 5), n_speech[1])
    assert counted.layers == {"text": 2 * (1 + steps[0]), "speech": 3 * (1 + steps[1])}


def test_the_model_is_left_as_it_was() -> None:
    zipped = two()
    before = {name: tensor.clone() for name, tensor in zipped.model.state_dict().items()}
    generate(zipped, [Segment("speech", [1])], ["text"], 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in zipped.model.state_dict().items())
    batch = zipped.collate([[Segment("speech", [1]), Segment("text", [2])]])
    zipped.loss(zipped.model(batch), batch)["total"].backward()
    zipped.model.zero_grad()


def test_nothing_asked_is_nothing_answered() -> None:
    assert generate_batch(two(), [], ["text"]) == []
    assert generate_batch(two(), [[Segment("text", [1])], []], []) == [[], []]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"outputs": [["text"]]}, "expected one list for each of 2 prompts, got 1"),
        ({"max_tokens": {"text": 3}, "outputs": ["text", "speech"]}, "max_tokens: nothing for 'speech'"),
        ({"max_tokens": {"text": 3, "speach": 2}}, "max_tokens: no tower is called 'speach'; did you mean 'speech'"),
        ({"sampling": {"txt": Sampling()}}, "sampling: no tower is called 'txt'; did you mean 'text'"),
        ({"seed": [1]}, "seed: expected one for each of 2 prompts, got 1"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ZippkitError, match=words):
        generate_batch(two(), [[], []], **{"outputs": ["text"], **settings})


def test_what_cannot_be_generated_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZippkitError, match=r"outputs: no tower is called 'txt'; did you mean 'text'\?"):
        generate(two(), [], ["speech", "txt"])
    with pytest.raises(ZippkitError, match="max_tokens: expected a whole number, 0 or more, got -1"):
        generate(two(), [], ["text"], -1)
    with pytest.raises(DataError, match="token 8 is outside the vocabulary of 8"):
        generate(two(), [Segment("text", [8])], ["text"])
    with pytest.raises(DataError, match="the prompt has 13 tokens, and begin and end of 2 new segments are to follow"):
        generate(two(MAX_LEN), [Segment("text", [1] * 11)], ["text", "speech", "text"])
    assert generate(two(MAX_LEN), [Segment("text", [1] * 11)], ["text"]) == [Segment("text", [])]
    monkeypatch.setattr(DecoderConfig, "causal", False)
    with pytest.raises(ZippkitError, match="outputs: 'text' is not causal, so it cannot generate"):
        generate(two(), [], ["text"])
