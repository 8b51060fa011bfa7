"""The native decoder against transformers' own models, its cache, and the folders that it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.compositions import SHARED_DATA, make_spec, randomise, tower
from zippkit.batch.batch import TowerBatch
from zippkit.batch.masks import cache_mask
from zippkit.errors import CheckpointError, SpecError
from zippkit.loading import load_spec
from zippkit.model.build import build_tower
from zippkit.model.weights import read_tensors, write_tensors
from zippkit.spec.checks.tower_checks import tower_complaints
from zippkit.spec.tower_spec import TowerSpec
from zippkit_towers.decoder.config import DecoderConfig
from zippkit_towers.decoder.tower import Decoder

STORIES = SHARED_DATA / "stories260k"
FRAME = {"begin": 1, "end": 2}


@pytest.fixture(scope="session")
def stories() -> Path:
    if not STORIES.exists():
        pytest.skip("needs ../shared/data/stories260k, a pre-trained model that is not redistributed")
    return STORIES


def inputs(tokens: Tensor, positions: Tensor | None = None) -> TowerBatch:
    """A batch of one tower's tokens; a decoder looks at nothing but tokens and positions."""
    alone = TowerBatch.alone(tokens)
    return alone if positions is None else replace(alone, positions=positions, position_ids=positions)


def forward(decoder: Decoder, batch: TowerBatch, mask: Tensor | None = None, cache: Any = None) -> Tensor:
    hidden, context = decoder.start(batch, mask, cache)
    for index in range(decoder.config.n_layers):
        hidden = decoder.layer(index, hidden, context)
    return decoder.head(hidden)


def spec_of(folder: Path, **more: Any) -> TowerSpec:
    return make_spec({"text": {"kind": "decoder", "weights": folder, **more}}).towers["text"]


def load(folder: Path, **more: Any) -> Decoder:
    decoder = build_tower(spec_of(folder, **more), "towers.text")
    assert isinstance(decoder, Decoder)
    return decoder


def tokens_for(decoder: Decoder, n_rows: int = 2, length: int = 40) -> Tensor:
    return torch.randint(0, decoder.config.vocab_size, (n_rows, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def difference(decoder: Decoder, reference: Any) -> float:
    """Largest difference of logits, in units of their own size."""
    tokens = tokens_for(decoder)
    expected = reference(tokens).logits
    return float((forward(decoder, inputs(tokens)) - expected).abs().max() / expected.abs().max())


@pytest.mark.data
def test_a_real_model_in_one_file_and_in_shards(stories: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.LlamaForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()
    assert difference(load(stories), reference) < 1e-5
    tensors = sorted(read_tensors(stories).items())
    shards = {
        "model-00001-of-00002.safetensors": dict(tensors[::2]),
        "model-00002-of-00002.safetensors": dict(tensors[1::2]),
    }
    for file, part in shards.items():
        write_tensors(tmp_path / file, part)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(stories / "config.json", tmp_path)
    assert difference(load(tmp_path), reference) < 1e-5


@pytest.mark.data
def test_a_folder_tells_its_config_and_frame(stories: Path, tmp_path: Path) -> None:
    spec = spec_of(stories)
    assert spec.settings == DecoderConfig(
        vocab_size=512, dim=64, n_layers=5, n_heads=8, n_kv_heads=4, head_dim=8, ffn_dim=172, max_len=512, frame=FRAME
    )
    assert spec_of(stories, frame={"begin": 7, "end": 8}).settings.frame == spec.settings.frame.model_copy(
        update={"begin": 7, "end": 8}
    ), "the spec's frame goes before the model's own"
    file = tmp_path / "spec.yaml"
    file.write_text(f"name: a\ntowers:\n  text: {{kind: decoder, weights: {stories.resolve()}, freeze: true}}\n")
    assert load_spec(file).towers["text"].settings.n_layers == 5


TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Save a tiny random model of transformers and return its folder."""
    transformers = pytest.importorskip("transformers")

    def make(family: str, **config: Any) -> tuple[Path, Any]:
        settings = getattr(transformers, f"{family}Config")(**{**TINY, **config})
        model = getattr(transformers, f"{family}ForCausalLM")(settings).eval()
        randomise(model)
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        return folder, model

    return make


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
        {"head_dim": 6, "num_key_value_heads": 2},
        {"rms_norm_eps": 0.3, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
    ],
    ids=["untied", "grouped", "multi-query, tied", "head_dim", "eps and theta"],
)
def test_random_llamas(save: Any, config: dict[str, Any]) -> None:
    folder, reference = save("Llama", **config)
    assert difference(load(folder), reference) < 1e-5


def test_a_mistral_without_a_window(save: Any) -> None:
    folder, reference = save("Mistral", num_key_value_heads=2, sliding_window=None)
    assert difference(load(folder), reference) < 1e-5


def refusal(folder: Path, **more: Any) -> str:
    """What the check says, before any torch; and a compile says the same."""
    (message,) = dict(tower_complaints(spec_of(folder, **more))).values()
    return message.replace(str(folder), "FOLDER")


def rewrite(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of a saved model with keys of its config.json changed, or removed where given as ``...``."""
    copied = shutil.copytree(folder, tmp_path / "copy")
    raw = json.loads((copied / "config.json").read_text()) | changes
    (copied / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))
    return copied


def test_models_that_the_decoder_does_not_compute_are_refused_by_name(save: Any) -> None:
    folder, _ = save("Qwen2", num_key_value_heads=2)
    assert refusal(folder) == "FOLDER holds a 'qwen2' model; kind `decoder` runs llama and mistral"
    folder, _ = save("Mistral", num_key_value_heads=2, sliding_window=8)
    assert refusal(folder) == "FOLDER: sliding_window is 8; kind `decoder` computes only None"
    folder, _ = save("Llama", attention_bias=True)
    assert refusal(folder) == "FOLDER: attention_bias is True; kind `decoder` computes only False"
    folder, _ = save("Llama", hidden_act="gelu")
    assert refusal(folder) == "FOLDER: hidden_act is 'gelu'; kind `decoder` computes only 'silu'"
    folder, _ = save("Llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    assert "'rope_type': 'linear'" in refusal(folder)
    with pytest.raises(SpecError, match="computes only rope_type 'default'"):
        load_spec_with(folder)


def load_spec_with(folder: Path) -> None:
    file = folder / "spec.yaml"
    file.write_text(f"name: a\ntowers:\n  text: {{kind: decoder, weights: {folder}}}\n")
    load_spec(file)


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "FOLDER: rope_scaling is {'type': 'dynamic'"),
        (
            "Llama",
            {"rope_parameters": {"type": "linear", "factor": 2.0}},
            "FOLDER: rope_parameters are {'type': 'linear'",
        ),
        ("Llama", {"rope_parameters": "linear"}, "FOLDER: rope_parameters are 'linear'"),
        ("Llama", {"partial_rotary_factor": 0.5}, "FOLDER: partial_rotary_factor is 0.5"),
        ("Llama", {"model_type": ["llama"]}, "FOLDER holds a \"['llama']\" model"),
        ("Llama", {"model_type": ...}, "FOLDER holds a 'None' model"),
        ("Llama", {"hidden_size": ...}, "FOLDER: config.json has no 'hidden_size'"),
        ("Llama", {"hidden_size": "16"}, "the config in 'FOLDER': dim: expected a valid integer, got '16'"),
        ("Llama", {"num_attention_heads": 3}, "the config in 'FOLDER': n_kv_heads 4 does not divide n_heads 3"),
        ("Llama", {"bos_token_id": -1}, "the config in 'FOLDER': begin: expected greater than or equal to 0, got -1"),
        # What transformers takes for a key that is left out.
        ("Mistral", {"sliding_window": ...}, "FOLDER: sliding_window is 4096"),
    ],
)
def test_configs_that_do_not_fit(save: Any, tmp_path: Path, family: str, changes: dict[str, Any], told: str) -> None:
    folder, _ = save(family, num_key_value_heads=4, **({"sliding_window": None} if family == "Mistral" else {}))
    assert refusal(rewrite(folder, tmp_path, **changes), frame=FRAME).startswith(told)


def test_keys_that_a_config_leaves_out_mean_what_they_mean_to_transformers(save: Any, tmp_path: Path) -> None:
    left_out = {"tie_word_embeddings": ..., "rms_norm_eps": ..., "rope_parameters": ..., "head_dim": ...}
    config = spec_of(rewrite(save("Llama", num_key_value_heads=2)[0], tmp_path, **left_out)).settings
    assert (config.tied, config.norm_eps, config.rope_theta, config.head_width) == (False, 1e-6, 10_000.0, 4)


def test_a_model_with_several_end_ids_needs_a_frame(save: Any, tmp_path: Path) -> None:
    folder = rewrite(save("Llama")[0], tmp_path, eos_token_id=[2, 3])
    assert refusal(folder).startswith("the model has no begin and end ids of its own; expected `frame")
    assert list(tower_complaints(spec_of(folder, frame=FRAME))) == []


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, b"\xff"])
def test_a_config_json_that_is_none(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refusal(tmp_path).startswith("FOLDER/config.json ")


@pytest.mark.parametrize("content", ["{}", '{"config": 3}', '{"config": {"dim": 1}}', "3"])
def test_a_tower_json_that_does_not_fit(tmp_path: Path, content: str) -> None:
    assert "does not tell its config (tower.json is missing); write `config:` into the spec" in refusal(tmp_path)
    (tmp_path / "tower.json").write_text(content)
    assert list(tower_complaints(spec_of(tmp_path)))


def test_weights_of_a_tied_model_with_another_head_are_refused(save: Any) -> None:
    folder, _ = save("Llama", num_key_value_heads=4)
    config = spec_of(folder).settings.model_dump(exclude_unset=True)
    assert not config["tied"]
    with pytest.raises(CheckpointError, match=r"lm_head differs from the embedding; expected `tied: false`"):
        load(folder, config=config | {"tied": True})


def test_weights_that_do_not_fit_the_config_are_told(save: Any) -> None:
    folder, _ = save("Llama", num_key_value_heads=4)
    config = spec_of(folder).settings.model_dump(exclude_unset=True)
    with pytest.raises(CheckpointError) as caught:
        load(folder, config=config | {"n_layers": 4, "vocab_size": 51})
    told = str(caught.value)
    assert "missing layers.3.self_attn.q_proj.weight" in told
    assert told.endswith("and 6 more")
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has shape \[50, 16\], expected \[51, 16\]"):
        load(folder, config=config | {"vocab_size": 51})


def test_half_precision_files_are_read_into_single(save: Any, tmp_path: Path) -> None:
    folder, _ = save("Llama", num_key_value_heads=2)
    halves = {name: tensor.bfloat16() for name, tensor in read_tensors(folder).items()}
    shutil.copytree(folder, tmp_path / "half")
    write_tensors(tmp_path / "half" / "model.safetensors", halves)
    decoder = load(tmp_path / "half")
    assert decoder.embed_tokens.weight.dtype == torch.float32
    transformers = pytest.importorskip("transformers")
    reference = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32).eval()
    assert difference(decoder, reference) < 1e-5


@pytest.mark.parametrize("chunk", [1, 2])
def test_cached_decoding_is_the_full_forward_for_rows_of_different_lengths(chunk: int) -> None:
    """Prompts of 5 and 3 tokens, padded on the right; then ``chunk`` tokens at a time."""
    spec = make_spec({"text": tower(3, 16, 20, {"n_kv_heads": 1, "head_dim": 6})}).towers["text"]
    decoder = build_tower(spec, "towers.text")
    assert isinstance(decoder, Decoder)
    randomise(decoder)
    decoder.double()
    tokens = tokens_for(decoder, length=12)
    lengths = torch.tensor([5, 3])
    n_new = 6
    with torch.no_grad():
        full = forward(decoder, inputs(tokens))
        cache = decoder.new_cache(2, 5 + n_new)
        prompt = inputs(torch.where(torch.arange(5) < lengths[:, None], tokens[:, :5], 19))
        logits = forward(decoder, prompt, cache_mask(prompt.positions, 5), cache)
        for row, length in enumerate(lengths):
            assert torch.allclose(logits[row, :length], full[row, :length], rtol=0, atol=1e-10)
        for step in range(0, n_new, chunk):
            positions = lengths[:, None] + step + torch.arange(chunk)
            new = inputs(tokens.gather(1, positions), positions)
            # The cache is seen up to the longest row; what shorter rows have not written yet stays unseen.
            n_slots = int(positions.max()) + 1
            logits = forward(decoder, new, cache_mask(positions, n_slots), cache)
            expected = full.gather(1, positions[..., None].expand(-1, -1, 20))
            assert torch.allclose(logits, expected, rtol=0, atol=1e-10)


def test_a_tied_head_is_trained_as_embedding_and_as_head() -> None:
    """Its gradient is the sum of what the two would have by themselves."""
    towers = [
        build_tower(TowerSpec.model_validate(tower(2, 8, config={"tied": tied})), "towers.it") for tied in (True, False)
    ]
    randomise(towers[0])
    weights = towers[0].state_dict()
    towers[1].load_state_dict(weights | {"lm_head.weight": weights["embed_tokens.weight"]})
    tokens = inputs(torch.tensor([[3, 4, 5, 3]]))
    grads: list[dict[str, Tensor]] = []
    for each in towers:
        hidden, context = each.start(tokens, None)
        for index in range(2):
            hidden = each.layer(index, hidden, context)
        each.head(hidden).log_softmax(dim=-1)[..., 7].sum().backward()
        grads.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
    tied, apart = grads
    both = apart["embed_tokens.weight"] + apart["lm_head.weight"]
    assert torch.allclose(tied["embed_tokens.weight"], both, atol=1e-5)
    assert apart["lm_head.weight"].abs().max() > 1e-3
