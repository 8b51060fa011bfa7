"""Towers that are built without values, and filled from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helpers.compositions import link, make_spec, tower
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.model.bare import bare_tower, fill_bare
from zippkit.model.build import build_model
from zippkit.model.dtypes import concrete
from zippkit.model.new_tower import new_tower
from zippkit.model.tower import Tower
from zippkit.spec.kinds import TowerConfig
from zippkit_towers.hf_causal_lm.config import HfCausalLmConfig
from zippkit_towers.hf_causal_lm.tower import HfCausalLm

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen3": SIZES | {"head_dim": 16, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mixtral": SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def check(cls: type[Tower], config: TowerConfig, source: Path, dtype: torch.dtype = torch.float32) -> None:
    """It is what it is when it is loaded as ever, and what is drawn after it is the same."""
    torch.manual_seed(0)
    whole = new_tower(cls, config, dtype, source)
    follows = torch.rand(3)
    torch.manual_seed(0)
    bare = bare_tower(cls, config, dtype, source)
    assert bare is not None
    assert torch.equal(torch.rand(3), follows)
    assert {(p.is_meta, p.dtype) for p in bare.parameters()} == {(True, dtype)}
    fill_bare(bare, source, "cpu")
    assert bare.state_dict().keys() == whole.state_dict().keys()
    for (name, own), (_, expected) in zip(bare.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(own, expected), name
    for (name, own), (_, expected) in zip(bare.named_buffers(), whole.named_buffers(), strict=True):
        assert torch.equal(own, expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoders(tmp_path: Path, dtype: torch.dtype) -> None:
    spec = make_spec({"text": tower(2, config={"tied": True})}).towers["text"]
    from zippkit_towers.decoder.tower import Decoder

    write_tower(tmp_path / "text", Decoder(spec.settings), spec.kind)
    check(Decoder, spec.settings, tmp_path / "text", dtype)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_hugging_face_folders(tmp_path: Path, name: str) -> None:
    hf = transformers.AutoConfig.for_model(name, **MODELS[name])
    transformers.AutoModelForCausalLM.from_config(hf).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    check(HfCausalLm, HfCausalLmConfig.from_folder(tmp_path), tmp_path)


def test_what_is_drawn_around_them_is_the_same(tmp_path: Path) -> None:
    hf = transformers.AutoConfig.for_model("llama", **MODELS["llama"])
    transformers.AutoModelForCausalLM.from_config(hf).save_pretrained(tmp_path)
    text = {"kind": "hf_causal_lm", "config": {"path": str(tmp_path)}, "input_projection": {"depth": 2}}
    spec = concrete(make_spec({"text": text, "speech": tower(2)}, [link("text", "speech", every=1)]))
    whole, bare = build_model(spec)[0], build_model(spec, bare=["text"])[0]
    assert next(bare.tower("text").parameters()).is_meta
    fill_bare(bare.tower("text"), tmp_path, "cpu")
    for (name, own), (_, expected) in zip(bare.state_dict().items(), whole.state_dict().items(), strict=True):
        assert torch.equal(own, expected), name


def test_what_is_read_by_rules_of_its_own_is_told(tmp_path: Path) -> None:
    hf = transformers.AutoConfig.for_model("mixtral", **MODELS["mixtral"])
    transformers.AutoModelForCausalLM.from_config(hf).save_pretrained(tmp_path)
    torch.manual_seed(0)
    follows = torch.rand(3)
    torch.manual_seed(0)
    bare = bare_tower(HfCausalLm, HfCausalLmConfig.from_folder(tmp_path), torch.float32, tmp_path)
    assert bare is None, "experts stand one by one in the file"
    assert torch.equal(torch.rand(3), follows)
