"""The zipped model against the design's equations, its bypass, its state dict, and what compilers ask of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from helpers.compositions import bucketed, link, make, tower
from zippkit.batch.batch import Segment
from zippkit.checkpoint.frozen_hashes import frozen_tensors
from zippkit.composition import Composition
from zippkit.errors import DataError
from zippkit.plan.graph import LinkSite

pytestmark = pytest.mark.slow

EXAMPLES = [
    [Segment("text", [1, 2, 3]), Segment("speech", [4, 5]), Segment("text", [6]), Segment("speech", [7, 8, 9])],
    [Segment("speech", [9, 8, 7, 6, 5]), Segment("text", [4, 3, 2])],
    [Segment("text", [1, 1]), Segment("text", [2])],
    [Segment("speech", [3])],
]
"""Two multimodal rows and two unimodal ones, none as long as another."""
DECLARED = [True, True, False, False]


def zipper(text: dict[str, Any] | None = None, speech: dict[str, Any] | None = None, links: Any = None) -> Composition:
    """Two towers of different widths, depths and head layouts that read each other."""
    towers = {
        "text": tower(3, 16, **(text or {})),
        "speech": tower(
            4, 12, 30, {"n_kv_heads": 1, "head_dim": 8, "tied": False, "rope_theta": 50.0}, **(speech or {})
        ),
    }
    both = [link("speech", "text", every=1), link("text", "speech", every=2)]
    return make(towers, both if links is None else links)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turn(x_TK: Tensor, positions: Tensor, theta: float) -> Tensor:
    half = x_TK.shape[-1] // 2
    frequencies = theta ** -(torch.arange(half).double() * 2 / (2 * half))
    angles = positions.double()[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = x_TK[:, :half], x_TK[:, half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(q_TK: Tensor, k_SK: Tensor, v_SK: Tensor, mask_TS: Tensor) -> Tensor:
    scores = (q_TK @ k_SK.T / q_TK.shape[-1] ** 0.5).masked_fill(~mask_TS, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v_SK


class Naive:
    """One row without padding, state by state, straight from section 3 of the design."""

    def __init__(self, zipped: Composition, segments: list[Segment]) -> None:
        self.zipped = zipped
        self.weights = dict(zipped.model.named_parameters())
        self.tokens: dict[str, list[int]] = {}
        self.order: dict[str, list[int]] = {}
        place = 0
        for segment in segments:
            frame = zipped.graph.towers[segment.tower].frame
            framed = [frame.begin, *segment.tokens, frame.end]
            self.tokens.setdefault(segment.tower, []).extend(framed)
            self.order.setdefault(segment.tower, []).extend(range(place, place + len(framed)))
            place += len(framed)

    def weight(self, name: str) -> Tensor:
        return self.weights[name].detach()

    def positions(self, name: str) -> Tensor:
        return torch.arange(len(self.tokens[name]))

    def u(self, name: str, depth: int) -> Tensor:
        """(T, D) state before fusion."""
        if depth:
            return self.layer(name, depth, self.h(name, depth - 1))
        embedded = self.weight(f"towers.{name}.embed_tokens.weight")[self.tokens[name]]
        spec = self.zipped.spec.towers[name].input_projection
        if spec is None or len(self.tokens) == 1:  # which the examples declare unimodal
            return embedded
        out = self.mlp(f"input_projections.{name}{'.mlp' if spec.residual else ''}", embedded, spec.depth, torch.relu)
        return embedded + out if spec.residual else torch.relu(out)

    def mlp(self, name: str, x: Tensor, depth: int, activation: Callable[[Tensor], Tensor]) -> Tensor:
        for i in range(depth):
            x = x @ self.weight(f"{name}.{2 * i}.weight").T + self.weight(f"{name}.{2 * i}.bias")
            x = activation(x) if i < depth - 1 else x
        return x

    def layer(self, name: str, depth: int, x: Tensor) -> Tensor:
        config: Any = self.zipped.graph.towers[name]
        base = f"towers.{name}.layers.{depth - 1}"
        inner = norm(x, self.weight(f"{base}.input_layernorm.weight"), config.norm_eps)
        q, k, v = (inner @ self.weight(f"{base}.self_attn.{part}_proj.weight").T for part in "qkv")
        width, group = config.head_width, config.n_heads // config.kv_heads
        mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        heads = []
        for head in range(config.n_heads):
            of, shared = (
                slice(width * head, width * (head + 1)),
                slice(width * (head // group), width * (head // group + 1)),
            )
            angles = (self.positions(name), config.rope_theta)
            heads.append(attend(turn(q[:, of], *angles), turn(k[:, shared], *angles), v[:, shared], mask))
        x = x + torch.cat(heads, -1) @ self.weight(f"{base}.self_attn.o_proj.weight").T
        inner = norm(x, self.weight(f"{base}.post_attention_layernorm.weight"), config.norm_eps)
        gate, up = (inner @ self.weight(f"{base}.mlp.{part}_proj.weight").T for part in ("gate", "up"))
        return x + (F.silu(gate) * up) @ self.weight(f"{base}.mlp.down_proj.weight").T

    def h(self, name: str, depth: int) -> Tensor:
        """(T, D) state after fusion."""
        state = self.u(name, depth)
        for site in self.zipped.graph.sites:
            if (site.target, site.target_depth) == (name, depth) and site.source in self.tokens:
                state = self.fuse(site, state, self.u(site.source, site.source_depth))
        return state

    def fuse(self, site: LinkSite, u: Tensor, source: Tensor) -> Tensor:
        base = f"links.{site.link}.{site.index}"
        eps = torch.finfo(torch.float64).eps
        (spec,) = (spec for spec in self.zipped.spec.links if spec.label == site.link)
        settings: Any = spec.settings
        mask = torch.tensor(self.order[site.target])[:, None] > torch.tensor(self.order[site.source])[None, :]
        sees = mask.any(dim=-1, keepdim=True)
        projected = norm(source, self.weight(f"{base}.source_norm.weight"), eps)
        projected = self.mlp(f"{base}.projection", projected, spec.projection.depth, torch.relu)
        query = norm(u, self.weight(f"{base}.attention_norm.weight"), eps) @ self.weight(f"{base}.query.weight").T
        key, value = (projected @ self.weight(f"{base}.{part}.weight").T for part in ("key", "value"))
        heads = []
        for q, k, v in zip(*(x.chunk(settings.n_heads, dim=-1) for x in (query, key, value)), strict=True):
            if settings.positions == "none":
                heads.append(attend(q, k, v, mask | ~sees))
            else:
                q_turned = turn(q, self.positions(site.target), settings.rope_theta)
                k_turned = turn(k, self.positions(site.source), settings.rope_theta)
                heads.append(attend(q_turned, k_turned, v, mask | ~sees))
        a = u + torch.tanh(self.weight(f"{base}.attention_gate")) * (
            torch.cat(heads, -1) @ self.weight(f"{base}.output.weight").T
        )
        inner = norm(a, self.weight(f"{base}.feed_forward_norm.weight"), eps)
        out = a + torch.tanh(self.weight(f"{base}.feed_forward_gate")) * self.mlp(
            f"{base}.feed_forward", inner, 2, F.gelu
        )
        return torch.where(sees, out, u)

    def logits(self, name: str) -> Tensor:
        config: Any = self.zipped.graph.towers[name]
        head = "embed_tokens" if config.tied else "lm_head"
        finished = norm(self.h(name, config.n_layers), self.weight(f"towers.{name}.norm.weight"), config.norm_eps)
        return finished @ self.weight(f"towers.{name}.{head}.weight").T


def assert_equations_hold(zipped: Composition) -> None:
    zipped.model.double()
    batch = zipped.collate(EXAMPLES, multiple=4, multimodal=DECLARED)
    with torch.no_grad():
        logits = zipped.model(batch)
    assert set(logits) == {"text", "speech"}
    for row, segments in enumerate(EXAMPLES):
        naive = Naive(zipped, segments)
        for name in naive.tokens:
            expected = naive.logits(name)
            assert (logits[name][row, : len(expected)] - expected).abs().max() <= 1e-9, f"row {row}, {name}"


RESIDUAL = {"input_projection": {"depth": 2}}
PAPER = {"input_projection": {"depth": 2, "width": 10, "residual": False}}
PAPER_LINK: dict[str, Any] = {"config": {"n_heads": 4, "positions": "none", "start": "zero_gates"}}


@pytest.mark.parametrize(
    ("text", "speech"),
    [({}, {}), (RESIDUAL, {}), (PAPER, RESIDUAL), (RESIDUAL, PAPER)],
    ids=["none", "one", "both", "swapped"],
)
def test_a_forward_is_the_design_s_equations(text: dict[str, Any], speech: dict[str, Any]) -> None:
    assert_equations_hold(zipper(text, speech))


@pytest.mark.parametrize(
    "links",
    [
        [],
        [link("speech", "text", every=3, source="final", projection={"depth": 1})],
        [link("speech", "text", every=1, source_every=1, **PAPER_LINK), link("text", "speech", every=2, **PAPER_LINK)],
        # Two links into one site act in spec order, whatever their names.
        [
            link("speech", "text", sites=[{"from": 4, "into": 2}], name="z", projection={"depth": 2, "width": 6}),
            link("speech", "text", sites=[{"from": 0, "into": 2}, {"from": 1, "into": 2}], name="a"),
            link("text", "speech", sites=[{"from": 2, "into": 4}]),
        ],
    ],
    ids=["no links", "final", "paper", "one site"],
)
def test_every_way_to_place_links(links: list[dict[str, Any]]) -> None:
    assert_equations_hold(zipper(links=links))


def test_the_order_of_links_into_one_site_matters() -> None:
    """So that the test above can fail."""
    first, second = (
        link("speech", "text", sites=[{"from": depth, "into": 2}], name=f"from{depth}") for depth in (4, 1)
    )
    logits = []
    for links in ([first, second], [second, first]):
        zipped = zipper(links=links)
        state = {**zipped.model.state_dict(), **(logits[0][1] if logits else {})}
        zipped.model.load_state_dict(state)
        logits.append((zipped.model(zipped.collate([EXAMPLES[1]]))["text"], state))
    assert not torch.allclose(logits[0][0], logits[1][0])


@pytest.mark.parametrize("projection", [RESIDUAL, PAPER])
def test_unimodal_rows_pass_by_everything_that_was_added(projection: dict[str, Any]) -> None:
    zipped = zipper(projection, projection)
    for name, row in (("text", EXAMPLES[2]), ("speech", EXAMPLES[3])):
        module = zipped.model.tower(name)
        for examples, at in (([row], 0), ([EXAMPLES[0], row], 1)):
            batch = zipped.collate(examples, multimodal=[True, False][-len(examples) :])
            inputs = batch.towers[name]
            hidden, context = module.start(inputs, None)
            for index in range(module.config.n_layers):
                hidden = module.layer(index, hidden, context)
            assert torch.equal(zipped.model(batch)[name][at], module.head(hidden)[at])


def test_padding_and_other_rows_change_nothing() -> None:
    zipped = zipper(RESIDUAL, PAPER)
    zipped.model.double()
    together = zipped.model(zipped.collate(EXAMPLES, multiple=16, multimodal=DECLARED))
    for row, segments in enumerate(EXAMPLES):
        for name, logits in zipped.model(zipped.collate([segments], multimodal=DECLARED[row])).items():
            assert torch.allclose(together[name][row, : logits.shape[1]], logits[0], rtol=0, atol=1e-12)


def test_the_loss_is_the_mean_over_predicted_tokens() -> None:
    zipped = zipper()
    examples = EXAMPLES[:3]  # 15 predicted text tokens, 13 of speech
    batch = zipped.collate(examples)
    logits = zipped.model(batch)
    losses = zipped.loss(logits, batch)
    nats: dict[str, list[Tensor]] = {name: [] for name in logits}
    for row, segments in enumerate(examples):
        place = dict.fromkeys(logits, 0)
        for segment in segments:
            end = zipped.graph.towers[segment.tower].frame.end
            for token in [*segment.tokens, end]:
                scores = logits[segment.tower][row, place[segment.tower]]
                nats[segment.tower].append(-torch.log_softmax(scores, -1)[token])
                place[segment.tower] += 1
            place[segment.tower] += 1
    for name, values in nats.items():
        assert torch.allclose(losses[name], torch.stack(values).mean())
    assert torch.allclose(losses["total"], torch.stack([value for values in nats.values() for value in values]).mean())


def test_a_batch_that_asks_for_no_loss() -> None:
    zipped = zipper()
    batch = zipped.collate([[Segment("text", [1], loss=False), Segment("speech", [2], loss=False)]])
    assert zipped.model(batch) == {}
    with pytest.raises(DataError, match="no segment of this batch asks for a loss"):
        zipped.loss(zipped.model(batch), batch)


def test_the_state_dict_says_whose_each_tensor_is_and_goes_around() -> None:
    first, second = zipper(RESIDUAL, PAPER), zipper(RESIDUAL, PAPER)
    state = first.model.state_dict()
    assert {name.split(".")[0] for name in state} == {"towers", "input_projections", "links"}
    assert "towers.text.layers.0.self_attn.q_proj.weight" in state
    assert "links.speech_to_text.2.attention_gate" in state
    own = {f"towers.text.{name}" for name in first.model.tower("text").state_dict()}
    assert own == {name for name in state if name.startswith("towers.text.")}
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.zero_()
    second.model.load_state_dict(state, strict=True)
    batch = first.collate(EXAMPLES)
    for name, logits in first.model(batch).items():
        assert torch.equal(logits, second.model(batch)[name])


def test_a_tower_that_is_thawed_later_gets_its_gradient() -> None:
    zipped = zipper({"freeze": True}, {"freeze": True})
    batch = zipped.collate([[Segment("speech", [1, 2], loss=False), Segment("text", [3])]])
    zipped.loss(zipped.model(batch), batch)["total"].backward()
    assert all(p.grad is None for p in zipped.model.tower("speech").parameters())
    copied = copy.deepcopy(zipped.model)
    for model in (zipped.model, copied):
        model.tower("speech").requires_grad_(True)
        zipped.loss(model(batch), batch)["total"].backward()
        assert model.tower("speech").layers[0].mlp.up_proj.weight.grad is not None
    assert len(pickle.dumps(zipped.model)) > 1000


def test_a_frozen_tower_stays_in_evaluation_mode() -> None:
    zipped = zipper({"freeze": True}, {"freeze": {"layers.*": "train", "[!l]*": "freeze", "lm_head.*": "freeze"}})
    zipped.model.train()
    assert not zipped.model.tower("text").training
    assert not zipped.model.tower("text").layers[0].training
    assert zipped.model.tower("speech").training
    assert zipped.model.links.training
    names = set(frozen_tensors(zipped.spec, zipped.model))
    assert names == {name for name, p in zipped.model.named_parameters() if not p.requires_grad}
    assert "towers.speech.norm.weight" in names


def small() -> Composition:
    """As little as shows everything that a compiler might stumble over; it traces each layer."""
    towers = {"text": tower(2, 8, freeze=True, **RESIDUAL), "speech": tower(2, 8, **PAPER)}
    return make(towers, [link("speech", "text", every=2), link("text", "speech", every=2)])


def test_a_step_runs_on_fake_tensors() -> None:
    """Nothing in forward, loss, backward and clipping looks at a value, so no device is ever waited for."""
    real = bucketed(small(), 0)
    with FakeTensorMode() as mode:
        zipped = small()
        towers = {name: tower.mapped(mode.from_tensor) for name, tower in real.towers.items()}
        batch = replace(real, towers=towers, multimodal=mode.from_tensor(real.multimodal))
        logits = zipped.model(batch)
        zipped.loss(logits, batch)["total"].backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in zipped.model.parameters() if p.requires_grad], 1.0)
    assert logits["text"].shape == (4, 16, 20)
    assert norm.shape == ()


@torch._dynamo.config.patch(error_on_recompile=True)
def test_one_compilation_serves_every_batch_of_a_bucket() -> None:
    """Forward and backward as one graph, without a break and without a second look at the Python code."""
    zipped = small()
    compiled = torch.compile(zipped.model, fullgraph=True, dynamic=False, backend="eager")
    for seed in range(3):
        batch = bucketed(zipped, seed)
        gradients = []
        for model in (compiled, zipped.model):
            zipped.model.zero_grad()
            zipped.loss(model(batch), batch)["total"].backward()
            gradients.append({n: p.grad for n, p in zipped.model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name


def test_another_kind_of_batch_is_compiled_anew_and_not_served_a_stale_plan() -> None:
    zipped = make({"text": tower(1, 8), "speech": tower(1, 8)}, [link("speech", "text", every=1)])
    compiled = torch.compile(zipped.model, fullgraph=True, dynamic=False, backend="eager")
    speech, text = Segment("speech", [1, 2]), Segment("text", [3, 4])
    for segments in ([speech, text], [text, speech], [replace(speech, loss=False), text]):
        batch = zipped.collate([segments])
        found, expected = compiled(batch), zipped.model(batch)
        assert found.keys() == expected.keys()
        for name, logits in expected.items():
            assert torch.allclose(found[name], logits, rtol=1e-5, atol=1e-6)
