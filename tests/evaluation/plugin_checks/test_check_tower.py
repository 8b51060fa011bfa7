"""`check_tower` and `check_link` pass what zippkit brings, and say in words what is wrong with planted faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.model.links.base import Link, Memory
from zippkit.model.links.configs import GatedCrossAttentionConfig
from zippkit.model.links.gated_cross_attention import GatedCrossAttention
from zippkit.model.weights import fingerprint
from zippkit.spec.kinds import LinkConfig, TowerConfig
from zippkit.testing import check_link, check_tower
from zippkit_towers.decoder.config import DecoderConfig
from zippkit_towers.decoder.tower import Cache, Context, Decoder


def config(**more: Any) -> DecoderConfig:
    return DecoderConfig(**({"vocab_size": 10, "dim": 16, "n_layers": 2, "n_heads": 2} | more))


@pytest.mark.parametrize(
    "settings",
    [{}, {"tied": False}, {"n_kv_heads": 1}, {"frame": {"begin": 4, "end": 7}}, {"n_layers": 1}, {"max_len": 9}],
    ids=str,
)
def test_the_decoder_keeps_the_protocol(settings: dict[str, Any]) -> None:
    assert check_tower(config(**settings)) == []


def test_a_frozen_tower_says_that_no_gradient_was_looked_for() -> None:
    assert check_tower(Decoder(config()).requires_grad_(False)) == ["gradients: not checked, every parameter is frozen"]


def test_a_tower_that_is_not_causal_keeps_it_too() -> None:
    class WholeConfig(DecoderConfig):
        causal: ClassVar[bool] = False

    whole = WholeConfig(vocab_size=10, dim=16, n_layers=2, n_heads=2)
    assert check_tower(Decoder(whole)) == ["cache: not checked, the tower is not causal"]


def test_a_config_has_to_name_its_tower() -> None:
    with pytest.raises(ValueError, match="TowerConfig does not name its tower"):
        check_tower(TowerConfig(dim=4, n_layers=1))


def test_the_tower_and_the_random_state_stay_as_they_are() -> None:
    tower = Decoder(config()).train()
    before, state = fingerprint(tower.state_dict().items()), torch.random.get_rng_state()
    check_tower(tower)
    assert fingerprint(tower.state_dict().items()) == before
    assert tower.training
    assert all(p.grad is None for p in tower.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_tower_with_a_parameter_that_has_a_range_is_checked_as_it_is() -> None:
    assert check_tower(ConstrainedScale(UnnamedConfig(vocab_size=10, dim=16, n_layers=1, n_heads=2))) == []


class WithoutCache(Decoder):
    def new_cache(self, batch_size: int, max_len: int) -> Cache:
        raise NotImplementedError("it has no cache")


def test_a_tower_without_a_cache_says_so() -> None:
    assert check_tower(WithoutCache(config())) == ["cache: not checked, it has no cache"]


class NarrowStart(Decoder):
    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Context]:
        hidden, context = super().start(inputs, mask, cache)
        return hidden[..., :8], context

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


class NotFinite(Decoder):
    def head(self, hidden: Tensor) -> Tensor:
        return super().head(hidden) / 0


class TooFewLayers(Decoder):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        del self.layers[1]


class OneLayerForgotten(Decoder):
    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        return super().layer(0, hidden, context)


class Random(Decoder):
    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        return nn.functional.dropout(super().layer(index, hidden, context), 0.5, training=True)


class LooksAhead(Decoder):
    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        return super().layer(index, hidden + nn.functional.pad(hidden[:, 1:], (0, 0, 0, 1)), context)


class MixesTheBatch(Decoder):
    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        return super().layer(index, hidden + hidden.mean(dim=0), context)


class CountsPadding(Decoder):
    def head(self, hidden: Tensor) -> Tensor:
        return super().head(hidden * hidden.shape[1])

    def _initialise(self) -> None:
        super()._initialise()
        self.norm = nn.Identity()


class ForgetsPositions(Decoder):
    """Its cache takes every token for the first."""

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Context]:
        hidden, context = super().start(inputs, mask, cache)
        if cache is not None:
            context.angles[0].fill_(1)
            context.angles[1].fill_(0)
        return hidden, context


class OneSlotForAllRows(Decoder):
    """Its cache believes that every row stands where the first does."""

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Context]:
        hidden, context = super().start(inputs, mask, cache)
        return hidden, Context(context.angles, mask, cache, inputs.positions[:1].expand_as(inputs.positions))


class WithDeadParameter(Decoder):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.forgotten = nn.Parameter(torch.ones(3))


class LosesState(Decoder):
    """A buffer that is drawn anew and not saved."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.register_buffer("scale", torch.rand(config.dim), persistent=False)

    def head(self, hidden: Tensor) -> Tensor:
        return super().head(hidden * self.scale)


class LoadsNothing(Decoder):
    """Always starts from the same weights, so that only a tower whose weights have moved shows it."""

    def _initialise(self) -> None:
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)

    def load_weights(self, path: Path) -> None:
        pass


class ConstrainedScale(Decoder):
    """Sound: its logits are finite only where a parameter is between 1 and 1.2."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.full((64,), 1.05))

    def head(self, hidden: Tensor) -> Tensor:
        return super().head(hidden) * torch.sqrt((self.scale - 1) * (1.2 - self.scale)).mean()


class UnnamedConfig(DecoderConfig):
    def parameter_names(self) -> None:
        return None


class WrongNames(DecoderConfig):
    def parameter_names(self) -> list[str]:
        return [name.replace("norm.weight", "norm.scale") for name in super().parameter_names()]


TOWER_FAULTS: dict[str, tuple[type[Decoder], list[str]]] = {
    "start of another width": (
        NarrowStart,
        [
            "start gives states of shape (2, 8, 8), expected (B, T, dim) = (2, 8, 16)",
            "layer 1 gives states of shape",
            "head gives logits of shape (2, 8, 8), expected (B, T, vocab_size) = (2, 8, 10)",
        ],
    ),
    "not finite": (NotFinite, ["the logits are not finite"]),
    "too few layers": (TooFewLayers, ["shapes: IndexError: index 1 is out of range"]),
    "too many layers": (OneLayerForgotten, ["no gradient reaches layers.1."]),
    "random": (Random, ["two runs of one batch give different logits"]),
    "looks ahead": (
        LooksAhead,
        ["the logits at position 0 change when the token at position 1 does: it looks ahead"],
    ),
    "mixes the batch": (MixesTheBatch, ["the logits of row 1 change when row 0 of the batch does"]),
    "counts padding": (CountsPadding, ["padding on the right changes what stands before it: row 0 position 0 is off"]),
    "forgets positions": (
        ForgetsPositions,
        ["with a cache, one token at a time,", "with a cache, 2 tokens at once and then one at a time, the logits"],
    ),
    "one slot for all rows": (
        OneSlotForAllRows,
        ["with a cache, one token at a time, the logits are not those of the"],
    ),
    "dead parameter": (
        WithDeadParameter,
        ["no gradient reaches forgotten", "parameter_names() leaves out forgotten"],
    ),
    "loses state": (LosesState, ["a tower that is saved and loaded gives other logits"]),
    "loads nothing": (LoadsNothing, ["a tower that is saved and loaded gives other logits"]),
}


@pytest.mark.parametrize("name", TOWER_FAULTS)
def test_what_is_wrong_with_a_tower_is_told(name: str) -> None:
    cls, expected = TOWER_FAULTS[name]
    with pytest.raises(AssertionError) as error:
        check_tower(cls(config()))
    first, *told = str(error.value).split("\n- ")
    assert first == f"{cls.__name__} does not keep its protocol:"
    for words in expected:
        assert any(words in line for line in told), told


def test_a_fault_is_told_alone() -> None:
    with pytest.raises(AssertionError) as error:
        check_tower(LooksAhead(config(n_layers=1)))
    # Looking ahead also means that padding is seen, and that a cache cannot follow.
    assert [line.partition(" ")[0] for line in str(error.value).split("\n- ")[1:]] == ["the", "padding", "with", "with"]
    with pytest.raises(AssertionError, match=r"protocol:\n- the logits of row 1 change[^\n]*$"):
        check_tower(MixesTheBatchOnly(config()))


class MixesTheBatchOnly(Decoder):
    """Through the states of the first position, which the cache and the padding do not change."""

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Context]:
        hidden, context = super().start(inputs, mask, cache)
        if cache is None and len(hidden) == 3:
            hidden = hidden + hidden[:1, :1]
        return hidden, context


def test_parameter_names_are_compared() -> None:
    tower = Decoder(WrongNames(vocab_size=10, dim=16, n_layers=1, n_heads=2))
    with pytest.raises(AssertionError) as error:
        check_tower(tower)
    assert "- parameter_names() leaves out layers.0.input_layernorm.weight, " in str(error.value)
    assert "- parameter_names() names layers.0.input_layernorm.scale, " in str(error.value)
    assert "norm.scale, which the tower does not have" in str(error.value)


@pytest.mark.parametrize("start", ["zero_outputs", "zero_gates"])
@pytest.mark.parametrize("positions", ["rotary", "none"])
@pytest.mark.parametrize("norm_source", [True, False])
def test_gated_cross_attention_keeps_the_protocol(start: Any, positions: Any, norm_source: bool) -> None:
    settings = GatedCrossAttentionConfig(start=start, positions=positions, norm_source=norm_source)
    assert check_link(GatedCrossAttention, settings) == []


def test_widths_that_do_not_fit_are_the_callers_mistake() -> None:
    with pytest.raises(
        ValueError, match="n_heads 8 does not divide the target's width 12: give check_link other widths"
    ):
        check_link(GatedCrossAttention, GatedCrossAttentionConfig(), target_dim=12)


class Mean(Link):
    """A sound link of another kind: a gated mean of the source so far, which needs no attention."""

    class Config(LinkConfig):
        pass

    def __init__(self, config: LinkConfig, source_dim: int, target_dim: int, projection: nn.Module) -> None:
        super().__init__(config, source_dim, target_dim, projection)
        self.gate = nn.Parameter(torch.zeros(target_dim))

    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        return Memory(tokens.visible, (self.projection(source),))

    def sees(self, order: Tensor, memory: Memory) -> Tensor:
        return (memory.order[:, None, :] >= 0) & (memory.order[:, None, :] < order[:, :, None])

    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        sees = self.sees(tokens.order, memory).float()
        mean = sees @ memory.tensors[0] / sees.sum(dim=-1, keepdim=True).clamp(min=1)
        return target + self.gate * mean


def test_a_link_that_is_no_attention_keeps_it_too() -> None:
    assert check_link(Mean, Mean.Config()) == []


class Open(Mean):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        nn.init.ones_(self.gate)


class SeesEqualAndLater(Mean):
    def sees(self, order: Tensor, memory: Memory) -> Tensor:
        return super().sees(order + 2, memory)


class SeesPadding(Mean):
    def sees(self, order: Tensor, memory: Memory) -> Tensor:
        return memory.order[:, None, :] < order[:, :, None]


class DividesByNothing(Mean):
    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        sees = self.sees(tokens.order, memory).float()
        mean = sees @ memory.tensors[0] / sees.sum(dim=-1, keepdim=True)
        return torch.where(sees.any(dim=-1, keepdim=True), target + self.gate * mean, target)


class ShiftsBlindPositions(Mean):
    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        return super().read(target, tokens, memory) + self.gate


class MixesRows(Mean):
    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        memory = super().write(source, tokens)
        return Memory(tokens.visible, (memory.tensors[0] - memory.tensors[0].mean(dim=0),))


class MixesSources(Mean):
    """What it writes of a token depends on how many are written with it."""

    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        memory = super().write(source, tokens)
        return Memory(tokens.visible, (memory.tensors[0] * source.shape[1],))


class MixesTargets(Mean):
    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        shift = self.gate * target.cumsum(dim=1) * self.sees(tokens.order, memory).any(dim=-1, keepdim=True)
        return super().read(target, tokens, memory) + shift


class HeadsFirst(Mean):
    def write(self, source: Tensor, tokens: TowerBatch) -> Memory:
        return Memory(tokens.positions, (self.projection(source).transpose(1, 2),))

    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        return target[..., :1]


class Deaf(Mean):
    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        return target


class Breaks(Mean):
    def read(self, target: Tensor, tokens: TowerBatch, memory: Memory) -> Tensor:
        raise RuntimeError("no")


LINK_FAULTS: dict[type[Mean], list[str]] = {
    Open: ["read is not the identity at initialisation"],
    SeesEqualAndLater: [
        "read rewrites a blind position, that no source token comes before: row 1 position 3 (order 3)",
        "the target token of order 4 sees the source token of order 5; expected earlier ones only",
    ],
    SeesPadding: ["read rewrites a blind position", "the source's padding is read"],
    DividesByNothing: ["gradients are not finite, with blind rows and padding in the batch: "],
    ShiftsBlindPositions: [
        "read rewrites a blind position, that no source token comes before: row 1 position 0 (order 0)"
    ],
    MixesRows: ["row 1 changes when row 0 of the batch does"],
    MixesSources: ["a memory that is written in two pieces and joined reads otherwise: row 0 position"],
    MixesTargets: ["one target token at a time reads otherwise than all at once: row 0 position"],
    HeadsFirst: [
        "the memory's order is not the one that write was given",
        "tensor 0 of the memory has shape (6, 64, 9), expected (B, S, ...) with (B, S) = (6, 9)",
        "read gives states of shape (6, 9, 1), expected the target's (6, 9, 64)",
    ],
    Deaf: ["read does not depend on the source at all", "no gradient reaches gate, projection.0.weight, "],
    Breaks: ["shapes: RuntimeError: no", "identity: RuntimeError: no"],
}


@pytest.mark.parametrize("cls", LINK_FAULTS)
def test_what_is_wrong_with_a_link_is_told(cls: type[Mean]) -> None:
    with pytest.raises(AssertionError) as error:
        check_link(cls, cls.Config())
    first, *told = str(error.value).split("\n- ")
    assert first == f"{cls.__name__} does not keep its protocol:"
    for words in LINK_FAULTS[cls]:
        assert any(words in line for line in told), told


def test_the_random_state_is_the_callers() -> None:
    state = torch.random.get_rng_state()
    check_link(Mean, Mean.Config())
    assert torch.equal(torch.random.get_rng_state(), state)
