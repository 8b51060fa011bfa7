"""Beam search against transformers' own, against all sequences, and beside what comes before and after it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralForCausalLM

import zippkit
from helpers.compositions import link, make, tower
from helpers.greedy import sharp
from helpers.tiny_decoders import write_windowed
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.generation.api import generate, generate_batch, stream
from zippkit.generation.beam_search import beam_search
from zippkit.model import kv_cache
from zippkit.model.kv_cache import KeyValues
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.sampling import Sampling

pytestmark = pytest.mark.slow

BEGIN, END = 0, 3


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("room", [0, 1, 4])
def test_enough_beams_find_the_best_of_all(length_penalty: float, room: int) -> None:
    """A table for each prefix; rows that end at other lengths beside each other."""
    tables = [torch.Generator().manual_seed(i) for i in range(4)]
    logits = [{} for _ in tables]  # type: list[dict[tuple[int, ...], torch.Tensor]]

    def after(row: int, prefix: tuple[int, ...]) -> torch.Tensor:
        if prefix not in logits[row]:
            logits[row][prefix] = (3 * torch.randn(5, generator=tables[row], dtype=torch.float64)).log_softmax(dim=0)
        return logits[row][prefix]

    def every(row: int) -> dict[tuple[int, ...], float]:
        found = {}
        for n in range(room + 1):
            for tokens in itertools.product([t for t in range(5) if t != END], repeat=n):
                ended = [*tokens, END] if n < room else [*tokens]
                total = sum(float(after(row, tuple(ended[:k]))[t]) for k, t in enumerate(ended))
                found[tokens] = total / max(len(ended), 1) ** length_penalty
        return found

    beams: list[tuple[int, ...]] = [()] * 4

    def step(parents: list[int], tokens: list[int], owners: list[int]) -> torch.Tensor:
        nonlocal beams
        beams = [(*beams[p], t) for p, t in zip(parents, tokens, strict=True)]
        return torch.stack([after(owner, beam[1:]) for owner, beam in zip(owners, beams, strict=True)])

    found = beam_search(step, BEGIN, END, [room] * 4, 5**4, length_penalty)
    for row, (tokens, score) in enumerate(found):
        scores = every(row)
        assert tuple(tokens) == max(scores, key=lambda each: scores[each])
        assert math.isclose(score, scores[tuple(tokens)], abs_tol=1e-9)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=9, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.6,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("length_penalty", [0.5, 1.0, 2.0])
def test_segments_are_those_of_transformers(llama: Path, beams: int, length_penalty: float) -> None:
    spec = {"name": "alone", "towers": {"text": {"kind": "hf_causal_lm", "config": {"path": str(llama)}}}}
    zipped = zippkit.compile(CompositionSpec.model_validate(spec))
    own = LlamaForCausalLM.from_pretrained(llama).eval()
    prompts = torch.randint(3, 9, (12, 3), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [[Segment("text", ids)] for ids in prompts]
    found = generate_batch(zipped, rows, ["text"], 9, Sampling(beams=beams, length_penalty=length_penalty))
    ended = 0
    for ids, (segment,) in zip(prompts, found, strict=True):
        given = torch.tensor([[1, *ids, 2, 1]])
        answer = own.generate(
            given, attention_mask=torch.ones_like(given), num_beams=beams, length_penalty=length_penalty,
            max_new_tokens=9, do_sample=False,
        )[0, given.shape[1] :].tolist()  # fmt: skip
        ended += 2 in answer
        assert segment.tokens == (answer[: answer.index(2)] if 2 in answer else answer)
    assert 0 < ended < len(prompts), "some end by themselves, some at the limit"


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("n_given", [1, 2])
def test_a_repetition_penalty_is_that_of_transformers(llama: Path, beams: int, n_given: int) -> None:
    """Rows beside each other; what was fed counts, begin ids and, behind another segment, end ids too."""
    spec = {"name": "alone", "towers": {"text": {"kind": "hf_causal_lm", "config": {"path": str(llama)}}}}
    zipped = zippkit.compile(CompositionSpec.model_validate(spec))
    own = LlamaForCausalLM.from_pretrained(llama).eval()
    prompts = torch.randint(3, 9, (20, n_given, 3), generator=torch.Generator().manual_seed(2)).tolist()
    rows = [[Segment("text", ids) for ids in prompt] for prompt in prompts]
    way = Sampling(beams=beams, repetition_penalty=4.0)
    found, plain = (generate_batch(zipped, rows, ["text"], 9, each) for each in (way, Sampling(beams=beams)))
    for prompt, (segment,) in zip(prompts, found, strict=True):
        given = torch.tensor([[*(i for ids in prompt for i in (1, *ids, 2)), 1]])
        answer = own.generate(
            given, attention_mask=torch.ones_like(given), num_beams=beams, repetition_penalty=4.0, max_new_tokens=9,
            do_sample=False,
        )[0, given.shape[1] :].tolist()  # fmt: skip
        assert segment.tokens == (answer[: answer.index(2)] if 2 in answer else answer)
    assert sum(one != other for one, other in zip(found, plain, strict=True)) > 2, "or nothing is shown"


def two() -> Composition:
    towers = {name: tower(2, 16, 12, {"tied": False}) for name in ("text", "speech")}
    return sharp(make(towers, [link("speech", "text", every=1), link("text", "speech", every=1)]))


@pytest.mark.parametrize("block", [1, 3, 64])
def test_ancestors_move_together(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever most of what hypotheses wrote is nobody's; of rows of every length beside each other."""
    zipped, moved, move = two(), list[int](), KeyValues.move
    rows = [[Segment("speech", [1, a, 3] * (a % 3))] for a in range(4)] + [[], [Segment("text", [4])]]
    monkeypatch.setattr(zipped.model.tower("text"), "takes_branches", False)
    ways = Sampling(beams=4, length_penalty=2.0)
    pieces = list(stream(zipped, rows, ["text"], 12, ways))
    monkeypatch.undo()

    def counted(cache: KeyValues, row: int, slots: torch.Tensor, first: int) -> None:
        moved.append(len(slots))
        move(cache, row, slots, first)

    monkeypatch.setattr(KeyValues, "move", counted)
    monkeypatch.setattr(kv_cache, "BLOCK", block)
    found = list(stream(zipped, rows, ["text"], 12, ways))
    assert [(p.row, p.token) for p in found] == [(p.row, p.token) for p in pieces]
    assert [p.score for p in found if p.score] == pytest.approx([p.score for p in pieces if p.score], abs=1e-9)
    assert bool(moved) == (block < 64)


def test_hypotheses_keep_a_sliding_window(tmp_path: Path) -> None:
    """Slots behind the prompt are no positions; a window counts positions."""
    write_windowed(tmp_path)
    spec = {"name": "alone", "towers": {"text": {"kind": "hf_causal_lm", "config": {"path": str(tmp_path)}}}}
    zipped = zippkit.compile(CompositionSpec.model_validate(spec))
    own = MistralForCausalLM.from_pretrained(tmp_path).eval()
    for ids in torch.randint(3, 9, (6, 3), generator=torch.Generator().manual_seed(1)).tolist():
        given = torch.tensor([[1, *ids, 2, 1]])
        answer = own.generate(
            given,
            attention_mask=torch.ones_like(given),
            num_beams=3,
            max_new_tokens=10,
            do_sample=False,
            pad_token_id=0,
        )[0, given.shape[1] :].tolist()
        (segment,) = generate(zipped, [Segment("text", ids)], ["text"], 10, Sampling(beams=3))
        assert segment.tokens == (answer[: answer.index(2)] if 2 in answer else answer)


def test_what_follows_a_search_reads_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    zipped = two()
    rows = [[Segment("speech", [1, a, 3])] for a in range(8)] + [[], [Segment("text", [4]), Segment("speech", [5])]]
    wanted = ["text", "speech", "text"]
    ways = {"text": Sampling(beams=3), "speech": Sampling()}
    found = generate_batch(zipped, rows, wanted, 5, ways)
    for name in wanted:
        monkeypatch.setattr(zipped.model.tower(name), "takes_branches", False)
    assert found == generate_batch(zipped, rows, wanted, 5, ways), "hypotheses as rows of their own"
    monkeypatch.undo()
    assert found == [generate(zipped, row, wanted, 5, ways) for row in rows]
    for row, (text, speech, _) in zip(rows, found, strict=True):
        assert [speech] == generate(zipped, [*row, text], ["speech"], 5)
    assert found != generate_batch(zipped, rows, wanted, 5)


def test_a_search_tells_its_score_and_its_tokens_at_once() -> None:
    generation = stream(two(), [[Segment("speech", [1, 2])]], ["text"], 4, Sampling(beams=2))
    pieces = list(generation)
    ((segment,),) = generation.segments
    assert [piece.token for piece in pieces] == [*segment.tokens, None]
    score = pieces[-1].score
    assert score is not None and score < 0


def test_towers_that_advance_together_take_no_beams() -> None:
    towers = {name: tower(2, 8, 8) for name in ("left", "right")}
    links = [link(a, b, every=1, clock="sync") for a, b in (("left", "right"), ("right", "left"))]
    with pytest.raises(ZippkitError, match="left and right advance together; expected beams: 1"):
        generate(make(towers, links), [], ["left", "right"], 4, Sampling(beams=2))
