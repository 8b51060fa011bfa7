"""Decoders of transformers, run layer by layer: each family tiny, against transformers' own model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import zippkit
from helpers.compositions import SHARED_DATA, link, randomise, tower
from zippkit.batch.batch import Segment, TowerBatch
from zippkit.batch.collate import collate
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.generation.api import generate_batch
from zippkit.loading import check_spec
from zippkit.model.run_tower import tower_logits
from zippkit.report.sizes import sizes
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.testing import check_tower
from zippkit_towers.hf_causal_lm import config as hf_causal_lm_config
from zippkit_towers.hf_causal_lm import parity as hf_causal_lm_parity
from zippkit_towers.hf_causal_lm.cache import Slots
from zippkit_towers.hf_causal_lm.config import HfCausalLmConfig
from zippkit_towers.hf_causal_lm.families import KNOWN
from zippkit_towers.hf_causal_lm.tower import HfCausalLm

pytestmark = pytest.mark.slow

WINDOW = 5
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": WINDOW}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "qwen2": SIZES | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": SIZES | {"head_dim": 16, "tie_word_embeddings": True},
    "mistral": SIZES | {"sliding_window": WINDOW},
    "gemma": SIZES | {"head_dim": 16},
    "gemma2": SIZES | ALTERNATING | {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": SIZES | ALTERNATING | {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 5.0},
    "granite": SIZES
    | {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    "phi3": SIZES | {"sliding_window": WINDOW},
    "olmo2": SIZES,
    "smollm3": SIZES | {"no_rope_layers": [1, 0, 1]},
    "gpt2": {"vocab_size": 40, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "gpt_neox": {key: value for key, value in SIZES.items() if key != "num_key_value_heads"} | {"rotary_pct": 0.5},
    "mixtral": SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
}
LENGTH = 4 * WINDOW


def settings(name: str) -> dict[str, Any]:
    return {"model": MODELS[name] | IDS | {"model_type": name}}


def build(name: str) -> HfCausalLm:
    """A tower of random weights, large enough that every setting shows in the logits."""
    torch.manual_seed(0)
    made = HfCausalLm(HfCausalLmConfig.model_validate(settings(name))).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return made


def reference(made: HfCausalLm) -> Any:
    """Transformers' own model, built from its config class, with the same weights."""
    name = made.config.model_type
    config = transformers.AutoConfig.for_model(**MODELS[name], **IDS, model_type=name)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    missing, unexpected = model.load_state_dict(made.state_dict(), strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    model.tie_weights()
    return model


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, 40, shape, generator=torch.Generator().manual_seed(1))


def test_every_family_is_tried() -> None:
    assert set(MODELS) == set(KNOWN)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_logits_are_transformers_own_past_the_window(name: str) -> None:
    made = build(name)
    given = tokens(2, LENGTH)
    expected = reference(made)(given).logits
    assert torch.allclose(tower_logits(made, TowerBatch.alone(given)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_rows_of_other_lengths_are_generated_as_transformers_does(name: str) -> None:
    """Greedily, with our caches, two rows at once; the window is passed while generating."""
    made = build(name)
    own = reference(made)
    spec = {"name": "alone", "towers": {"text": {"kind": "hf_causal_lm", "config": settings(name)}}}
    zipped = zippkit.compile(CompositionSpec.model_validate(spec))
    zipped.model.tower("text").load_state_dict(made.state_dict())
    prompts = [tokens(3).tolist(), tokens(2, 6)[1].tolist()]
    answers = generate_batch(zipped, [[Segment("text", ids)] for ids in prompts], ["text"], max_tokens=2 * WINDOW)
    for ids, (answer,) in zip(prompts, answers, strict=True):
        row = torch.tensor([[1, *ids, 2, 1]])
        for found in [*answer.tokens, *([2] if len(answer.tokens) < 2 * WINDOW else [])]:
            assert int(own(row).logits[0, -1].argmax()) == found
            row = torch.cat([row, torch.tensor([[found]])], dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_it_keeps_the_protocol(name: str) -> None:
    assert check_tower(build(name)) == []


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2", "mixtral"])
def test_zipped_it_is_proven(name: str) -> None:
    text = {"kind": "hf_causal_lm", "config": settings(name), "freeze": True}
    links = [link("speech", "text", every=1), link("text", "speech", every=2)]
    links += [{"kind": "prefix", "from": "speech", "into": "text", "name": "before"}]
    data = {"name": "zipped", "towers": {"text": text, "speech": tower(2)}, "links": links}
    zipped = zippkit.compile(CompositionSpec.model_validate(data))
    report = zippkit.verify(zipped)
    assert report.passed, str(report)
    assert ("text ran its experts token by token" in str(report)) == (name == "mixtral")
    assert name != "mixtral" or zipped.model.tower("text").hf._experts_implementation == "grouped_mm"


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "mixtral", "gemma2"])
@pytest.mark.parametrize("by", ["path", "weights"])
@torch.no_grad()
def test_a_saved_folder_comes_back(name: str, by: str, tmp_path: Path) -> None:
    made = build(name)
    folder = tmp_path / "folder"
    reference(made).save_pretrained(folder)
    given = {"config": {"path": str(folder)}} if by == "path" else {"weights": folder}
    spec = CompositionSpec.model_validate({"name": "alone", "towers": {"text": {"kind": "hf_causal_lm", **given}}})
    zipped = zippkit.compile(spec)
    batch = TowerBatch.alone(tokens(1, 8))
    assert torch.equal(tower_logits(zipped.model.tower("text").eval(), batch), tower_logits(made, batch))
    zipped.save(tmp_path / "saved")
    again = zippkit.load(tmp_path / "saved").model.tower("text").eval()
    assert torch.equal(tower_logits(again, batch), tower_logits(made, batch))


@torch.no_grad()
def test_a_real_model() -> None:
    folder = SHARED_DATA / "stories260k"
    if not folder.is_dir():
        pytest.skip("the stories model is not there")
    data = {"name": "real", "towers": {"text": {"kind": "hf_causal_lm", "config": {"path": str(folder)}}}}
    zipped = zippkit.compile(CompositionSpec.model_validate(data))
    own = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    given = tokens(1, 40)
    found = tower_logits(zipped.model.tower("text").eval(), TowerBatch.alone(given))
    assert torch.allclose(found, own(given).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padding_is_not_seen() -> None:
    made = build("mistral")
    config = {"text": made.config}
    both = collate([[Segment("text", [3, 4])], [Segment("text", list(range(3, 20)))]], config).towers["text"]
    alone = collate([[Segment("text", [3, 4])]], config).towers["text"]
    assert torch.allclose(tower_logits(made, both)[0, :4], tower_logits(made, alone)[0], atol=1e-5)


def test_a_model_that_would_run_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that is forgotten or off by one, a scale that is not applied, a mask that is ignored."""
    granite = build("granite")
    granite.hf.embedding_multiplier = 1.0
    with pytest.raises(CheckpointError, match=r"a 'granite' model, run layer by layer .at once., differs by"):
        granite.check()
    mask = HfCausalLm._mask
    for name, wrong in (
        ("mistral", lambda self, m, window, *rest: mask(self, m, None, *rest)),
        ("gemma2", lambda self, m, window, *rest: mask(self, m, window and window + 1, *rest)),
    ):
        made = build(name)
        monkeypatch.setattr(HfCausalLm, "_mask", wrong)
        with pytest.raises(CheckpointError, match=f"a '{name}' model, run layer by layer"):
            made.check()
        monkeypatch.undo()
        made.check()
    made = build("llama")
    update = Slots.update

    def misplaced(self: Any, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> Any:
        self.slots = (self.slots - 1).clamp(min=0)
        return update(self, key, value, layer_idx)

    monkeypatch.setattr(Slots, "update", misplaced)
    with pytest.raises(CheckpointError, match="part by part"):
        made.check()
    monkeypatch.setattr(hf_causal_lm_parity, "windows_of", lambda *_: [9] * 3)
    with pytest.raises(CheckpointError, match=r"cannot be run layer by layer .ValueError: its windows are \[9, 9, 9\]"):
        made.check()


@torch.no_grad()
def test_weights_that_are_no_numbers_are_refused() -> None:
    made = build("llama")
    dict(made.named_parameters())["model.norm.weight"][0] = float("nan")
    with pytest.raises(CheckpointError, match="differs by nan"):
        made.check()


def test_a_large_window_is_passed_in_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral's window is 4096 tokens; the check makes it small for itself, and leaves the tower as it was."""
    large = settings("mistral")
    large["model"] = large["model"] | {"sliding_window": 4096}
    made = HfCausalLm(HfCausalLmConfig.model_validate(large))
    made.check()
    assert made.windows == [4096] * 3
    mask = HfCausalLm._mask
    monkeypatch.setattr(HfCausalLm, "_mask", lambda self, m, window, *rest: mask(self, m, None, *rest))
    with pytest.raises(CheckpointError, match="past its window"):
        made.check()


def told(config: dict[str, Any]) -> str:
    spec = {"name": "alone", "towers": {"text": {"kind": "hf_causal_lm", "config": config}}}
    return "; ".join(message for _, message in check_spec(spec)[1])


def test_what_cannot_be_run_is_told_without_transformers() -> None:
    llama = settings("llama")["model"]
    assert "holds a 'lama' model, which transformers knows no decoder of; did you mean 'llama'?" in told(
        {"model": llama | {"model_type": "lama"}}
    )
    for rope in ("dynamic", "longrope"):
        scaling = {"rope_type": rope, "factor": 2.0}
        assert f"rope_type is {rope!r}" in told({"model": llama | {"rope_parameters": scaling}})
    assert "hidden_size is None; expected a whole number" in told({"model": {"model_type": "llama", "vocab_size": 5}})
    assert "expected `path: FOLDER_OR_HUB_ID` or `model" in told({})
    assert "is no folder, nor to be had from the hub" in told({"path": "no/such-model"})
    assert "use_bidirectional_attention is True" in told(
        {"model": settings("gemma3_text")["model"] | {"use_bidirectional_attention": True}}
    )
    assert "the model has no begin and end ids" in told({"model": {k: v for k, v in llama.items() if k not in IDS}})
    assert told({"model": llama | {"bos_token_id": 2, "eos_token_id": [2, 3]}}) == ""
    assert "dim is 8, but the model's is 32; leave it out" in told({"model": llama, "dim": 8})
    assert told({"model": llama}) == ""


NULLS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "gemma2": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
}


@pytest.mark.parametrize("name", NULLS)
@torch.no_grad()
def test_an_explicit_null_is_no_default(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral's window is 4096 where config.json does not tell one, and none where it says null."""
    made = build(name)
    reference(made).save_pretrained(tmp_path / "folder")
    file = tmp_path / "folder" / "config.json"
    # As transformers writes it: null stands in the file.
    file.write_text(json.dumps(json.loads(file.read_text()) | NULLS[name]))
    text = {"kind": "hf_causal_lm", "config": {"path": str(tmp_path / "folder")}}
    spec = CompositionSpec.model_validate({"name": "alone", "towers": {"text": text}})
    zipped = zippkit.compile(spec)
    own = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    assert all(getattr(own.config, key) is None for key in NULLS[name])
    # Longer than the default window.
    given = torch.randint(3, 40, (1, 4110 if name == "mistral" else LENGTH))
    expected = own(given).logits[:, -9:]
    own_tower = zipped.model.tower("text").eval()
    assert torch.allclose(tower_logits(own_tower, TowerBatch.alone(given))[:, -9:], expected, rtol=1e-4, atol=1e-4)
    zipped.save(tmp_path / "saved")
    again = zippkit.load(tmp_path / "saved").model.tower("text")
    assert all(key in again.config.model and again.config.model[key] is None for key in NULLS[name])
    # Were they lost, the check would tell: its reference is the folder as it stands.
    lost = hf_causal_lm_config._told
    monkeypatch.setattr(hf_causal_lm_config, "_told", lambda raw, where: _without_nulls(lost(raw, where)))
    with pytest.raises(CheckpointError, match=r"window|differs"):
        zippkit.compile(CompositionSpec.model_validate({"name": "alone", "towers": {"text": text}}))


def _without_nulls(told: dict[str, Any]) -> dict[str, Any]:
    return told | {"model": {key: value for key, value in told["model"].items() if value is not None}}


ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "hidden_act is 'nope'": ("llama", {"hidden_act": "nope"}),
    "ZeroDivisionError": ("llama", {"head_dim": 0}),
    "negative dimension -64": ("llama", {"num_attention_heads": -1}),
    "negative dimension -5": ("llama", {"intermediate_size": -5}),
    "'rope_parameters' with value 5": ("llama", {"rope_parameters": 5}),
    "integer division or modulo by zero": ("llama", {"num_key_value_heads": 0}),
    "not a multiple of the number of at": ("llama", {"num_attention_heads": 5}),
    "Field 'rms_norm_eps' expected float": ("llama", {"rms_norm_eps": "x"}),
    "even rotary dimension": ("llama", {"head_dim": 7}),
    "Padding_idx": ("llama", {"pad_token_id": 100}),
    "no attribute 'items'": ("llama", {"id2label": 3}),
    "`layer_types` entries": ("gemma2", {"layer_types": ["x"] * 3}),
    "no attribute 'setdefault'": ("gemma3_text", {"rope_parameters": {"full_attention": 3}}),
    "divisible by num_heads": ("gpt2", {"n_head": 3}),
    "inconsistent with step sign": ("gpt_neox", {"rotary_pct": -1.0}),
    "list index out of range": ("smollm3", {"no_rope_layers": [5]}),
    "integer modulo by zero": ("qwen3_moe", {"decoder_sparse_step": 0}),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("why", ODD)
def test_odd_settings_are_one_sentence(why: str) -> None:
    name, odd = ODD[why]
    config = settings(name)["model"] | odd
    text = {"kind": "hf_causal_lm", "config": {"model": config}}
    spec = CompositionSpec.model_validate({"name": "alone", "towers": {"text": text}})
    for build_it in (zippkit.compile, sizes):
        with pytest.raises(ZippkitError) as told_so:
            build_it(spec)
        assert f"transformers cannot build a {name!r} model of these settings" in str(told_so.value)
        assert why in str(told_so.value) and "\n" not in str(told_so.value)


@pytest.mark.parametrize("window", [{"final": 6}, 0, -4, 2.5, "wide"])
def test_a_window_that_is_no_length_is_told(window: Any) -> None:
    text = {"kind": "hf_causal_lm", "config": {"model": settings("llama")["model"] | {"sliding_window": window}}}
    with pytest.raises(ZippkitError, match=r"has sliding_window .*; expected a whole number above 0, or null"):
        zippkit.compile(CompositionSpec.model_validate({"name": "alone", "towers": {"text": text}}), device="meta")


@pytest.mark.parametrize("dropout", [-3, 2, None])
def test_dropout_is_none_whatever_it_is_said_to_be(dropout: int | None) -> None:
    """Transformers takes whole numbers and null, and torch does not."""
    text = {"kind": "hf_causal_lm", "config": {"model": settings("llama")["model"] | {"attention_dropout": dropout}}}
    spec = CompositionSpec.model_validate({"name": "alone", "towers": {"text": text}})
    assert zippkit.compile(spec).model.tower("text").hf.attention_dropout == 0
    assert not any(task.problem for task in sizes(spec).tasks)


def test_settings_stay_as_they_are_given() -> None:
    """Transformers fills in what is left out of nested settings, in place."""
    config = HfCausalLmConfig.model_validate(
        {"model": settings("llama")["model"] | {"rope_parameters": {"factor": 2.0}}}
    )
    HfCausalLm(config)
    assert config.model["rope_parameters"] == {"factor": 2.0}


def test_quantised_weights_are_refused() -> None:
    quantised = settings("llama")["model"] | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert "quantization_config is set" in told({"model": quantised})


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    reference(build("llama")).config.save_pretrained(tmp_path)
    torch.save(build("llama").state_dict(), tmp_path / "pytorch_model.bin")
    spec = {"name": "alone", "towers": {"text": {"kind": "hf_causal_lm", "config": {"path": str(tmp_path)}}}}
    with pytest.raises(CheckpointError, match=r"expected model.safetensors .*, found \['pytorch_model.bin'\]"):
        zippkit.compile(CompositionSpec.model_validate(spec))


def test_weights_of_another_shape_are_told(tmp_path: Path) -> None:
    reference(build("llama")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    spec = {"name": "alone", "towers": {"text": {"kind": "hf_causal_lm", "config": {"path": str(tmp_path)}}}}
    with pytest.raises(CheckpointError, match=r"missing keys: model\.layers\.3"):
        zippkit.compile(CompositionSpec.model_validate(spec))


def test_the_config_comes_back_without_its_folder(tmp_path: Path) -> None:
    reference(build("llama")).save_pretrained(tmp_path / "folder")
    config = HfCausalLmConfig.model_validate({"path": str(tmp_path / "folder")})
    assert HfCausalLmConfig.model_validate(config.model_dump(mode="json")).model == config.model
    assert "path" not in config.model_dump()


@torch.no_grad()
def test_padding_may_be_longer_than_the_model_takes() -> None:
    """GPT-2 has no position beyond its last one; a batch that is padded to a round length does."""
    made = build("gpt2")
    padded = collate([[Segment("text", list(range(3, 40)) + list(range(3, 23)))]], {"text": made.config}, multiple=50)
    logits = tower_logits(made, padded.towers["text"])
    assert logits.shape[1] == 100
    expected = tower_logits(made, padded.towers["text"].part(slice(0, 59)))
    assert torch.allclose(logits[:, :59], expected, atol=1e-5)


@pytest.mark.parametrize(("name", "random"), [("gpt2", {}), ("mixtral", {"router_jitter_noise": 0.5})])
def test_nothing_in_training_is_random(name: str, random: dict[str, float]) -> None:
    model = settings(name)["model"] | random
    made = HfCausalLm(HfCausalLmConfig.model_validate({"model": model})).train()
    randomise(made)
    batch = TowerBatch.alone(tokens(1, 8))
    assert torch.equal(tower_logits(made, batch), tower_logits(copy.deepcopy(made), batch))


def test_the_check_needs_weights() -> None:
    with torch.device("meta"):
        made = HfCausalLm(HfCausalLmConfig.model_validate(settings("llama")))
    made.check()
    assert hf_causal_lm_parity.LENGTH > hf_causal_lm_parity.WINDOW
