"""Low-rank adapters: beside the tower, its own weights untouched; merged, the same function without them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import zippkit
from helpers.compositions import bucketed, link, make_spec, randomise, tower
from zippkit.batch.batch import Batch, Segment
from zippkit.checkpoint.frozen_hashes import frozen_hashes
from zippkit.errors import SpecError
from zippkit.loading import check_spec
from zippkit.model.lora import AdaptedLinear, attach, merged_state
from zippkit.model.meta_device import meta_model
from zippkit.model.run_tower import tower_logits
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.part_kinds import group_names
from zippkit.spec.part_sections import Lora
from zippkit.spec.phase import Phase
from zippkit.training.optimizer import build_optimizer
from zippkit_towers.decoder.config import DecoderConfig

pytestmark = pytest.mark.slow

PATTERN = "layers.*.self_attn.?_proj.weight"
TOWERS = {"text": tower(2, freeze=True, lora={"rank": 2, "alpha": 6, "pattern": PATTERN}), "speech": tower(2)}
LINKS = [link("speech", "text", every=1)]


def adapted(towers: dict[str, Any] | None = None) -> zippkit.Composition:
    zipped = zippkit.compile(make_spec(towers or TOWERS, LINKS))
    randomise(zipped.model.tower("text"))
    return zipped


def batch(zipped: zippkit.Composition) -> Batch:
    return zipped.collate([[Segment("speech", [1, 2], loss=False), Segment("text", [3, 4, 5])], [Segment("text", [6])]])


def randomized(zipped: zippkit.Composition) -> zippkit.Composition:
    randomise(zipped.model.adapters, 1)
    return zipped


def test_adapters_stand_beside_the_tower_and_leave_its_keys() -> None:
    zipped = adapted()
    plain = zippkit.compile(make_spec({"text": tower(2, freeze=True), "speech": tower(2)}, LINKS))
    assert zipped.model.tower("text").state_dict().keys() == plain.model.tower("text").state_dict().keys()
    own = {name for name, _ in zipped.model.named_parameters()} - {name for name, _ in plain.model.named_parameters()}
    keys = [f"layers-{i}-self_attn-{part}_proj" for i in range(2) for part in "qkvo"]
    assert own == {f"adapters.text.{key}.{part}" for key in keys for part in ("down", "up")}


def test_nothing_changes_at_first_and_something_once_they_learn() -> None:
    zipped = adapted()
    given = batch(zipped).towers["text"]
    plain = zippkit.compile(make_spec({"text": tower(2)})).model.tower("text")
    plain.load_state_dict(zipped.model.tower("text").state_dict())
    expected = tower_logits(plain, given)
    assert torch.equal(tower_logits(zipped.model.tower("text"), given), expected)
    assert not torch.allclose(tower_logits(randomized(zipped).model.tower("text"), given), expected)


def test_a_copy_has_adapters_of_its_own() -> None:
    zipped = randomized(adapted())
    given = batch(zipped)
    before = zipped.model(given)["text"]
    other = copy.deepcopy(zipped.model)
    randomise(other.adapters, 2)
    assert not torch.allclose(other(given)["text"], before)
    assert torch.equal(zipped.model(given)["text"], before)


def test_an_adapter_is_no_hook_and_survives_copies_and_pickling() -> None:
    zipped = randomized(adapted())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in zipped.model.modules())
    given = batch(zipped)
    expected = zipped.model(given)["text"]
    for other in (copy.deepcopy(zipped.model), pickle.loads(pickle.dumps(zipped.model))):
        map_, own = other.tower("text").layers[0].self_attn.q_proj, other.adapters["text"]["layers-0-self_attn-q_proj"]
        assert isinstance(map_, AdaptedLinear) and map_.adapter is own
        assert torch.equal(other(given)["text"], expected)


def test_a_map_under_two_names_is_adapted_wherever_it_is_called() -> None:
    shared = nn.Linear(4, 4)
    holder = nn.ModuleDict({"first": shared, "second": shared})
    adapters = attach(holder, ["first.weight"], Lora(rank=2))
    randomise(adapters)
    assert holder["first"] is holder["second"] and holder["first"].weight is shared.weight
    x = torch.ones(1, 4)
    assert torch.equal(holder["second"](x), shared(x) + adapters["first"](x))


def test_a_map_that_computes_in_its_own_way_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'out_proj\.weight' is not the weight of a linear map but of NonDynamically"):
        attach(nn.MultiheadAttention(4, 2), ["out_proj.weight"], Lora(rank=2))


def test_the_tower_s_own_weights_stay_and_its_adapters_learn() -> None:
    zipped = adapted()
    phase = Phase(steps=3, tasks=["speech -> text"], learning_rate=1e-2)
    optimizer = build_optimizer(zipped.model, learning_rates(zipped.spec, phase), phase)
    frozen, given = frozen_hashes(zipped.spec, zipped.model), batch(zipped)
    before = {name: p.detach().clone() for name, p in zipped.model.adapters.named_parameters()}
    for _ in range(3):
        zipped.loss(zipped.model.train()(given), given)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert frozen_hashes(zipped.spec, zipped.model) == frozen
    assert {name.split(".", 2)[1] for name in frozen if name.startswith("towers.")} == {"text"}
    assert all(not torch.equal(p, before[name]) for name, p in zipped.model.adapters.named_parameters())


def test_every_certificate_holds() -> None:
    report = zippkit.verify(adapted())
    assert report.passed, str(report)


def test_merged_weights_compute_the_same() -> None:
    zipped = randomized(adapted())
    given = batch(zipped).towers["text"]
    plain = zippkit.compile(make_spec({"text": tower(2)})).model.tower("text")
    plain.load_state_dict(merged_state(zipped.model, "text"))
    found, expected = tower_logits(plain, given), tower_logits(zipped.model.tower("text"), given)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    untouched = merged_state(zipped.model, "speech")
    assert all(torch.equal(untouched[name], t) for name, t in zipped.model.tower("speech").state_dict().items())


def test_the_formula_in_double_precision_for_both_layouts() -> None:
    """``y = x W^T + b + alpha / rank * x down^T up^T``; transformers' Conv1D has its weight the other way round."""
    for module, transposed in ((nn.Linear(5, 7), False), (Conv1D(7, 5), True)):
        holder = nn.ModuleDict({"map": module.double()})
        adapters = attach(holder, ["map.weight"], Lora(rank=3, alpha=12)).double()
        randomise(holder)
        randomise(adapters, 1)
        x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        adapter = adapters["map"]
        weight = module.weight.T if transposed else module.weight
        expected = torch.stack([weight @ row + module.bias + 12 / 3 * (adapter.up @ (adapter.down @ row)) for row in x])
        assert torch.allclose(holder["map"](x), expected)
        assert adapter.change().shape == module.weight.shape


def test_rules_name_what_gets_an_adapter() -> None:
    rules = {PATTERN: "lora", "layers.*.mlp.*": "freeze", "*norm*": "freeze", "embed*": "train"}
    zipped = zippkit.compile(make_spec({"text": tower(1, freeze=rules), "speech": tower(1)}, LINKS))
    assert set(zipped.model.adapters["text"]) == {f"layers-0-self_attn-{part}_proj" for part in "qkvo"}
    assert not zipped.model.tower("text").layers[0].self_attn.q_proj.weight.requires_grad
    assert zipped.model.tower("text").embed_tokens.weight.requires_grad
    assert "adapters.text" in group_names(zipped.spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 2}}, "expected `pattern`, or `lora` as the action of a rule in `freeze`"),
        ({"lora": {"pattern": "layers.*.atention.*"}}, "matches no parameter"),
        ({"lora": {"pattern": PATTERN}, "freeze": False}, "is trained itself; freeze what adapters are for"),
    ],
)
def test_adapters_that_do_not_fit_are_told_without_building(changes: dict[str, Any], message: str) -> None:
    spec = {"name": "tiny", "towers": {"text": tower(2, **{"freeze": True, **changes})}}
    ((place, seen),) = check_spec(spec)[1]
    assert place == ("towers", "text", "lora")
    assert message in seen


def test_several_patterns_and_every_complaint_about_them() -> None:
    patterns = ["layers.0.self_attn.q_proj.weight", "layers.*.mlp.up_proj.weight"]
    both = make_spec({"text": tower(2, freeze=True, lora={"rank": 2, "pattern": patterns})})
    expected = {"layers-0-self_attn-q_proj", "layers-0-mlp-up_proj", "layers-1-mlp-up_proj"}
    assert set(zippkit.compile(both).model.adapters["text"]) == expected
    wrong = {"name": "tiny", "towers": {"text": tower(2, lora={"pattern": [*patterns, "layers.*.up.*", "mlp.*"]})}}
    ((_, seen),) = check_spec(wrong)[1]
    assert "'layers.*.up.*' matches no" in seen and "'mlp.*' matches no" in seen and "is trained itself" in seen
    for pattern in ([], "", 3, [3]):
        wrong["towers"]["text"]["lora"] = {"pattern": pattern}
        ((place, seen),) = check_spec(wrong)[1]
        assert place == ("towers", "text", "lora", "pattern")
        assert "expected a name pattern or a list of them" in seen


@torch._dynamo.config.patch(error_on_recompile=True)
def test_a_compiled_model_runs_its_adapters_and_is_compiled_once() -> None:
    zipped = randomized(adapted())
    compiled = torch.compile(zipped.model, fullgraph=True, dynamic=False, backend="eager")
    learned = list(zipped.model.adapters.parameters())
    for seed in range(2):
        given = bucketed(zipped, seed)
        found, expected = compiled(given)["text"], zipped.model(given)["text"]
        assert torch.allclose(found, expected, atol=1e-5)
        gradients = [torch.autograd.grad(logits.square().sum(), learned) for logits in (found, expected)]
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*gradients, strict=True))


def test_adapters_have_shapes_before_they_have_values() -> None:
    real, meta = adapted().model, meta_model(make_spec(TOWERS, LINKS))[0]
    assert all(p.is_meta for p in meta.parameters())
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


@pytest.mark.parametrize("shapes_known", [True, False], ids=["by check", "by compile"])
def test_weights_that_take_no_adapter_are_told(shapes_known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shapes_known:
        monkeypatch.setattr(DecoderConfig, "linear_shapes", lambda self: None)
    for pattern, message in (("embed_tokens.*", "is not the weight of a linear map"), (PATTERN, "rank 40 is larger")):
        data = {"text": tower(1, freeze=True, lora={"rank": 40, "pattern": pattern})}
        assert bool(check_spec({"name": "tiny", "towers": data})[1]) == shapes_known
        with pytest.raises(SpecError, match=rf"towers.text.* ?lora: .*{message}"):
            zippkit.compile(make_spec(data))
