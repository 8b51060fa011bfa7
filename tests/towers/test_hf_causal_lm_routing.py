"""The loss of routers: transformers' own, in the total where a mixture of experts is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import zippkit
from helpers.compositions import link, tower
from zippkit.batch.batch import Segment
from zippkit.spec.composition_spec import CompositionSpec

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "router_aux_loss_coef": 0.5,
}
ROWS = [[Segment("text", [3, 4, 5, 6, 7])], [Segment("text", [8, 9])]]


def compiled(**text: Any) -> Any:
    text = {"kind": "hf_causal_lm", "config": {"model": MIXTRAL}} | text
    return zippkit.compile(CompositionSpec.model_validate({"name": "moe", "towers": {"text": text}}))


def test_it_is_transformers_own_and_padding_does_not_count() -> None:
    zipped = compiled()
    model = zipped.model.tower("text")
    config = transformers.AutoConfig.for_model(**MIXTRAL)
    own = transformers.AutoModelForCausalLM.from_config(config).eval()
    own.load_state_dict(model.state_dict())
    batch = zipped.collate(ROWS)
    losses = zipped.loss(zipped.model(batch), batch)
    tokens = batch.towers["text"]
    expected = own(tokens.tokens, attention_mask=(tokens.order >= 0).long(), output_router_logits=True).aux_loss
    assert torch.allclose(losses["router.text"], expected, atol=1e-6)
    assert torch.allclose(losses["total"], losses["text"] + 0.5 * expected, atol=1e-6)
    # Padding is there, and would have counted.
    assert (tokens.order < 0).any()
    assert not torch.allclose(own(tokens.tokens, output_router_logits=True).aux_loss, expected, atol=1e-6)
    # The hooks are gone with the layers' run.
    assert not any(module._forward_hooks for module in model.modules())


def test_it_evens_the_routers_out() -> None:
    """Trained by the loss of tokens alone, a router that sends everything to two experts goes on doing so."""
    zipped = compiled()
    with torch.no_grad():
        for layer in zipped.model.tower("text").model.layers:
            layer.mlp.gate.weight[2:] = -layer.mlp.gate.weight[:2]
    batch = zipped.collate(ROWS)
    optimizer = torch.optim.Adam(zipped.model.parameters(), 1e-2)
    seen = []
    for _ in range(12):
        losses = zipped.loss(zipped.model(batch), batch)
        losses["router.text"].backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(losses["router.text"].detach()))
    assert seen[-1] < seen[0]


@pytest.mark.parametrize("changed", [{"freeze": True}, {"config": {"model": MIXTRAL | {"router_aux_loss_coef": 0.0}}}])
def test_there_is_none_where_nothing_asks_for_it(changed: dict[str, Any]) -> None:
    text = {"kind": "hf_causal_lm", "config": {"model": MIXTRAL}} | changed
    data = {"name": "moe", "towers": {"text": text, "speech": tower(2)}, "links": [link("speech", "text", every=1)]}
    zipped = zippkit.compile(CompositionSpec.model_validate(data))
    batch = zipped.collate([[Segment("speech", [3, 4]), *ROWS[0]]])
    losses = zipped.loss(zipped.model(batch), batch)
    assert "router.text" not in losses and not zipped.model.routes("text")


def test_a_trained_one_is_proven() -> None:
    text = {"kind": "hf_causal_lm", "config": {"model": MIXTRAL}}
    data = {"name": "moe", "towers": {"text": text, "speech": tower(2)}}
    data["links"] = [link("speech", "text", every=1), link("text", "speech", every=1)]
    report = zippkit.verify(zippkit.compile(CompositionSpec.model_validate(data)))
    assert report.passed, str(report)
