"""`check_link` passes every kind that zippkit brings, and tells faults of links at the embedding, inside attention and
by segment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.model.links.base import Link, Memory
from zippkit.model.links.configs import JointAttentionConfig, PrefixConfig, ResamplerConfig
from zippkit.model.links.joint_attention import JointAttention
from zippkit.model.links.prefix import Prefix
from zippkit.model.links.resampler import Resampler
from zippkit.spec import registry
from zippkit.spec.kinds import LinkConfig
from zippkit.testing import check_link

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("gated_cross_attention", {"gate": "vector", "placement": "before", "positions": "keys"}),
    ("gated_cross_attention", {"gate": "none", "gate_init": None}),
    ("cross_attention", {}),
    ("cross_attention", {"placement": "before", "positions": "none", "norm_source": False}),
    ("prefix", {}),
    ("prefix", {"stack": 3, "norm_source": False}),
    ("resampler", {"queries": 3}),
    ("resampler", {"queries": 2, "design": "qformer", "positions": "none", "norm_source": False}),
    ("resampler", {"queries": 3, "output": "cross_attention", "depth": 1}),
    ("resampler", {"queries": 2, "output": "cross_attention", "placement": "before", "design": "qformer"}),
    ("joint_attention", {}),
]


@pytest.mark.parametrize(("kind", "config"), SETTINGS, ids=str)
def test_every_kind_keeps_the_protocol(kind: str, config: dict[str, Any]) -> None:
    cls: type[Link] = registry.implementation(registry.LINKS, kind)
    assert check_link(cls, cls.Config(**config)) == []


def test_every_kind_is_among_them_and_describes_its_settings() -> None:
    ours = {kind.name for kind in registry.kinds(registry.LINKS) if kind.package == "zippkit"}
    assert {kind for kind, _ in SETTINGS} == ours
    for kind in ours:
        for name, field in registry.config_class(registry.LINKS, kind).model_fields.items():
            assert field.description, f"{kind}.{name}"


@settings(max_examples=10, deadline=None)
@given(stack=st.integers(1, 9), dims=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_a_prefix_of_any_shape(stack: int, dims: tuple[int, int]) -> None:
    source_dim, target_dim = dims
    # A width of 1 is what RMSNorm makes a sign of, and a narrow projection may be dead behind its ReLU.
    assert check_link(Prefix, PrefixConfig(stack=stack), source_dim=source_dim + 15, target_dim=target_dim + 15) == []


@settings(max_examples=10, deadline=None)
@given(
    queries=st.integers(2, 5),
    depth=st.integers(1, 3),
    design=st.sampled_from(["perceiver", "qformer"]),
    output=st.sampled_from(["prefix", "cross_attention"]),
)
def test_a_resampler_of_any_shape(queries: int, depth: int, design: Any, output: Any) -> None:
    config = ResamplerConfig(queries=queries, depth=depth, n_heads=2, ffn_mult=1, design=design, output=output)
    assert check_link(Resampler, config, source_dim=24, target_dim=32) == []


class RewritesTokens(Prefix):
    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        return super().read(target, tokens, memory) + 1


class FirstSegmentOnly(Prefix):
    """Whatever segment a place stands for, it is filled from the row's first."""

    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        first = memory.tensors[1].clamp(min=0).amin(dim=1, keepdim=True).expand_as(tokens.segment)
        return super().read(target, replace(tokens, segment=first), memory)


class TakesPlacesForTokens(Prefix):
    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        return super().write(source, replace(tokens, inserted=torch.zeros_like(tokens.inserted)))


class LastPlaceEmpty(Prefix):
    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        filled = super().read(target, tokens, memory)
        later = tokens.segment[:, :, None] == tokens.segment[:, None, :]
        last = ~(later & (tokens.offset[:, None, :] > tokens.offset[:, :, None])).any(dim=-1)
        return torch.where(last[:, :, None], target, filled)


class CountsWhatIsWritten(Prefix):
    """What it writes of a token depends on how many are written with it."""

    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        memory = super().write(source, tokens)
        return Memory(memory.order, (memory.tensors[0] * source.shape[1], *memory.tensors[1:]))


class MeanOfAllSoFar(Resampler):
    """Its latents are those of the whole row, not of one segment."""

    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        real = (tokens.visible >= 0)[:, :, None]
        mean = (source * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
        return super().write(source + real * mean, tokens)


class VisibleTooEarly(Resampler):
    """Latents may be read from the segment's first token on."""

    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        memory = super().write(source, tokens)
        return Memory((memory.order - 3).clamp(min=-1), memory.tensors)


class ReadsPadding(Resampler):
    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        memory = super().write(source, tokens)
        return Memory(memory.order, (memory.tensors[0] + source.mean(), *memory.tensors[1:]))


class KeysOfTheRow(JointAttention):
    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        memory = super().write(source, tokens)
        return Memory(memory.order, (memory.tensors[0].cumsum(dim=1), memory.tensors[1]))


class HeadsFirst(JointAttention):
    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        memory = super().write(source, tokens)
        return Memory(memory.order, (memory.tensors[0].transpose(1, 2), memory.tensors[1]))


class SeenByAll(JointAttention):
    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        return Memory(torch.zeros_like(tokens.visible), super().write(source, tokens).tensors)


PREFIX, LATENTS = PrefixConfig(stack=2), ResamplerConfig(queries=2, depth=1)
READ = LATENTS.model_copy(update={"output": "cross_attention"})
FAULTS: list[tuple[type[Link], LinkConfig, list[str]]] = [
    (RewritesTokens, PREFIX, ["read rewrites the target's own tokens: row 0 position"]),
    (
        FirstSegmentOnly,
        PREFIX,
        ["a place of segment 3 changes when a token of segment 1 does", "a place stays empty: row 1 place 0"],
    ),
    (TakesPlacesForTokens, PREFIX, ["what is inserted into the source is taken for a segment of the source"]),
    (LastPlaceEmpty, PREFIX, ["a place stays empty: row 0 place"]),
    (CountsWhatIsWritten, PREFIX, ["a memory that is written in two pieces and joined reads otherwise"]),
    (MeanOfAllSoFar, LATENTS, ["changes when a token of segment", "a memory that is written in two pieces and joined"]),
    (MeanOfAllSoFar, READ, ["sees the source token of order", "a memory that is written in two pieces and joined"]),
    (VisibleTooEarly, READ, ["the memory's last order is not that of the last segment"]),
    (ReadsPadding, LATENTS, ["the source's padding is read", "changes when row 0 of the batch does"]),
    (KeysOfTheRow, JointAttentionConfig(), ["a memory that is written in two pieces and joined reads otherwise"]),
    (HeadsFirst, JointAttentionConfig(), ["tensor 0 of the memory has shape (6, 2, "]),
    (SeenByAll, JointAttentionConfig(), ["the memory's order is not the one", "read rewrites a blind position"]),
]


@pytest.mark.parametrize(("cls", "config", "expected"), FAULTS, ids=lambda given: getattr(given, "__name__", ""))
def test_what_is_wrong_is_told(cls: type[Link], config: LinkConfig, expected: list[str]) -> None:
    with pytest.raises(AssertionError) as error:
        check_link(cls, config)
    first, *told = str(error.value).split("\n- ")
    assert first == f"{cls.__name__} does not keep its protocol:"
    for words in expected:
        assert any(words in line for line in told), told
