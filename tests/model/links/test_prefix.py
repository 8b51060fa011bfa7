"""A prefix against transformers' llama: projected states between the embeddings of the text, as LLaVA does it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

import zippkit
from helpers.compositions import link, make, make_spec, tower
from helpers.greedy import greedy, sharp
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.errors import SpecError
from zippkit.generation.api import generate, generate_batch
from zippkit_towers.decoder.config import DecoderConfig

pytestmark = pytest.mark.slow


def prefix(source: str, target: str, **more: Any) -> dict[str, Any]:
    return {"kind": "prefix", "from": source, "into": target, **more}


@cache
def single(stack: int) -> Composition:
    towers = {"text": tower(2, 8, 8, {"tied": False}), "speech": tower(3, 12, 7, {"tied": False, "n_kv_heads": 1})}
    return sharp(make(towers, [prefix("speech", "text", config={"stack": stack})]))


@cache
def triangle() -> Composition:
    """Images go into speech and into text, speech goes into text: its own tokens only, not the images' places."""
    towers = {name: tower(2, 8, 8, {"tied": False}) for name in ("image", "speech", "text")}
    links = [
        prefix("image", "speech", config={"stack": 3}, projection={"depth": 1}),
        prefix("speech", "text", config={"stack": 2, "norm_source": False}, projection={"depth": 2}),
        prefix("image", "text", sites=[{"from": 1, "into": 0}]),
    ]
    return sharp(make(towers, links))


class Reference:
    """One row through transformers' models, to which the towers' and the links' weights are given."""

    def __init__(self, zipped: Composition, row: list[Segment]) -> None:
        self.zipped, self.row = zipped, row

    def llama(self, name: str) -> LlamaModel:
        config = self.zipped.graph.towers[name]
        assert isinstance(config, DecoderConfig)
        model = LlamaModel(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.dim,
                intermediate_size=config.ffn_width,
                num_hidden_layers=config.n_layers,
                num_attention_heads=config.n_heads,
                num_key_value_heads=config.kv_heads,
                rms_norm_eps=config.norm_eps,
                attn_implementation="eager",
            )
        ).double()
        weights = dict(self.zipped.model.tower(name).state_dict())
        weights.pop("lm_head.weight")
        model.load_state_dict(weights)
        return model.eval()

    def embedded(self, name: str) -> tuple[Tensor, list[int | None]]:
        """(T, D) the sequence that a tower reads, and for each of its own tokens the number of its segment."""
        embedding, frame = self.llama(name).embed_tokens, self.zipped.graph.towers[name].frame
        assert frame is not None
        states: list[Tensor] = []
        numbers: list[int | None] = []
        waiting: list[Tensor] = []
        for number, segment in enumerate(self.row):
            if segment.tower == name:
                own = embedding(torch.tensor([frame.begin, *segment.tokens, frame.end]))
                states += [*waiting, own]
                numbers += [None] * sum(map(len, waiting)) + [number] * len(own)
                waiting = []
            elif any(site.source == segment.tower and site.target == name for site in self.zipped.graph.sites):
                waiting.append(self.projected(segment.tower, name, number))
        return torch.cat(states), numbers

    def projected(self, source: str, target: str, number: int) -> Tensor:
        """(places, D) what stands for one segment in the target's sequence."""
        (site,) = (s for s in self.zipped.graph.sites if (s.source, s.target) == (source, target))
        module: Any = self.zipped.model.link(site)
        states, numbers = self.states(source, site.source_depth)
        own = module.source_norm(states[[i for i, each in enumerate(numbers) if each == number]])
        stack = module.config.stack
        own = torch.cat([own, own.new_zeros(-len(own) % stack, own.shape[1])])
        out: Tensor = module.projection(own.reshape(len(own) // stack, -1))
        return out

    def states(self, name: str, depth: int) -> tuple[Tensor, list[int | None]]:
        model, (states, numbers) = self.llama(name), self.embedded(name)
        model.layers, model.norm = model.layers[:depth], nn.Identity()
        return model(inputs_embeds=states[None]).last_hidden_state[0], numbers

    def logits(self, name: str) -> Tensor:
        """(T, V) at the tower's own tokens."""
        config: Any = self.zipped.graph.towers[name]
        weights = self.zipped.model.tower(name).state_dict()
        states, numbers = self.states(name, config.n_layers)
        own = states[[i for i, number in enumerate(numbers) if number is not None]]
        scale = (own.square().mean(dim=-1, keepdim=True) + config.norm_eps).rsqrt()
        return own * scale * weights["norm.weight"] @ weights["lm_head.weight"].T


def assert_same(zipped: Composition, rows: list[list[Segment]], name: str) -> None:
    batch = zipped.collate(rows)
    logits, tokens = zipped.model(batch)[name], batch.towers[name]
    own = (tokens.order >= 0) & ~tokens.inserted
    for i, row in enumerate(rows):
        if own[i].any():
            expected = Reference(zipped, row).logits(name)
            # Theirs has norms and angles in float32, whatever the weights are.
            assert (logits[i, own[i]] - expected).abs().max() < 1e-5 * expected.abs().max()


def rows_of(*texts: str) -> list[list[Segment]]:
    """Rows such as ``s3 t1``: a speech segment of three tokens, then a text segment of one."""
    names, generator = {"s": "speech", "t": "text", "i": "image"}, torch.Generator().manual_seed(0)
    return [
        [Segment(names[w[0]], torch.randint(0, 5, (int(w[1:]),), generator=generator).tolist()) for w in text.split()]
        for text in texts
    ]


@pytest.mark.parametrize("stack", [1, 2, 3, 4, 20])
@torch.no_grad()
def test_logits_are_those_of_a_llama_with_embeddings_put_in(stack: int) -> None:
    """Segments whose length the stack does not divide, several of them, rows of other lengths, blind ones, padding."""
    rows = rows_of("s3 t4", "t2 s1 t1 s5 s2 t3", "s2 s3", "t3", "t1 s4", "s0 t0")
    assert_same(single(stack), rows, "text")
    assert_same(single(stack), rows, "speech")


@torch.no_grad()
def test_places_in_the_source_are_not_handed_on() -> None:
    rows = rows_of("i3 s2 t4", "i1 t1 s2 i2 s1 t3", "s2 i2 t1", "i2 s1 i1 s1 t1 t1")
    for name in ("text", "speech", "image"):
        assert_same(triangle(), rows, name)


SEGMENT = st.builds(Segment, st.sampled_from(["text", "speech"]), st.lists(st.integers(0, 4), max_size=4))
ROWS = st.lists(st.lists(SEGMENT, max_size=3), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, wanted=st.lists(st.sampled_from(["text", "speech"]), min_size=1, max_size=4))
def test_cached_generation_is_the_whole_forward(rows: list[list[Segment]], wanted: list[str]) -> None:
    assert generate_batch(single(2), rows, wanted, 4) == [greedy(single(2), row, wanted, 4) for row in rows]


@settings(max_examples=15, deadline=None)
@given(rows=ROWS, wanted=st.lists(st.sampled_from(["text", "speech", "image"]), min_size=1, max_size=4))
def test_generation_where_a_source_has_places_itself(rows: list[list[Segment]], wanted: list[str]) -> None:
    rows = [[Segment("image", [1, 2]), *row] for row in rows]
    assert generate_batch(triangle(), rows, wanted, 3) == [greedy(triangle(), row, wanted, 3) for row in rows]


def test_a_segment_that_was_generated_stands_like_one_that_was_given() -> None:
    zipped, prompt = single(3), rows_of("t2")[0]
    speech, text = generate(zipped, prompt, ["speech", "text"], max_tokens=5)
    assert speech.tokens
    assert text.tokens
    assert generate(zipped, [*prompt, speech], ["text"], max_tokens=5) == [text]
    other = Segment("speech", [(token + 1) % 5 for token in speech.tokens])
    assert generate(zipped, [*prompt, other], ["text"], max_tokens=5) != [text], "or nothing is shown"


@pytest.mark.parametrize("make_zipped", [lambda: single(2), triangle])
def test_certificates(make_zipped: Any) -> None:
    report = zippkit.verify(zippkit.compile(make_zipped().spec), only=["C1", "C2", "C7"])
    assert report.passed, str(report)


def test_a_prefix_that_waits_for_what_it_feeds_is_refused() -> None:
    towers = {"text": tower(), "speech": tower()}
    with pytest.raises(SpecError, match=r"cannot be ordered.*text\[\d\] -> speech\[\d\] -> text\[\d\]"):
        zippkit.compile(make_spec(towers, [prefix("speech", "text"), link("text", "speech", every=1)]))
    with pytest.raises(SpecError, match="acts once, at the target's embedding; remove `every`"):
        zippkit.compile(make_spec(towers, [prefix("speech", "text", every=1)]))
    twice = [prefix("speech", "text"), prefix("speech", "text", name="again")]
    with pytest.raises(SpecError, match="another link puts 'speech' into 'text'"):
        zippkit.compile(make_spec(towers, twice))
