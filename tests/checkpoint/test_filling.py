"""Weights are filled in place: what was frozen, adapted or given to an optimizer stays the object that it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import zippkit
from helpers.compositions import link, make_spec, randomise, tower
from zippkit.batch.batch import Segment
from zippkit.errors import ZippkitError
from zippkit.model.weights import filled_in_place, read_tensors
from zippkit_towers.decoder.tower import Decoder
from zippkit_towers.hf_causal_lm.config import HfCausalLmConfig
from zippkit_towers.hf_causal_lm.tower import HfCausalLm

LLAMA = {
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LORA = {"rank": 2, "pattern": "model.layers.*.self_attn.*_proj.weight"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama as `save_pretrained` writes it."""
    path = tmp_path_factory.mktemp("llama") / "hub"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**LLAMA))
    randomise(model)
    model.save_pretrained(path)
    return path


def composed(folder: Path, **more: Any) -> zippkit.Composition:
    text = {"kind": "hf_causal_lm", "weights": str(folder), "freeze": True, **more}
    return zippkit.compile(make_spec({"text": text, "speech": tower(1, 8)}, [link("speech", "text", every=1)]))


def logits(zipped: zippkit.Composition) -> torch.Tensor:
    with torch.no_grad():
        return zipped.model.eval()(zipped.collate([[Segment("speech", [1, 2]), Segment("text", [3, 4, 5])]]))["text"]


def test_a_hugging_face_folder_is_filled_in_place(folder: Path) -> None:
    made = HfCausalLm(HfCausalLmConfig.from_folder(folder))
    with filled_in_place(made, "it"):
        made.load_weights(folder)
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in read_tensors(folder).items())


def test_what_is_loaded_is_still_frozen_and_adapted(folder: Path, tmp_path: Path) -> None:
    """On the earlier code the tower came back trainable, and its adapters acted on modules that were gone."""
    made = composed(folder, lora=LORA)
    randomise(made.model.links)
    randomise(made.model.adapters, 1)
    made.save(tmp_path / "model")
    found = zippkit.load(tmp_path / "model")
    assert not any(p.requires_grad for p in found.model.tower("text").parameters())
    assert torch.equal(logits(found), logits(made))
    randomise(found.model.adapters, 2)
    assert not torch.allclose(logits(found), logits(made)), "its adapters act"


def test_what_is_there_already_is_not_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tower that a spec's weights have filled holds what the checkpoint names."""
    made = composed(folder)
    made.save(tmp_path / "model")
    reads: list[Path] = []
    read = HfCausalLm.load_weights
    monkeypatch.setattr(HfCausalLm, "load_weights", lambda self, path: (reads.append(path), read(self, path)))
    zippkit.load(tmp_path / "model", spec=made.spec)
    assert reads == [folder]
    zippkit.load(tmp_path / "model")
    assert reads == [folder, folder]


def test_no_weight_is_held_twice_where_a_checkpoint_names_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed(folder).save(tmp_path / "model")
    empty: list[bool] = []
    read = HfCausalLm.load_weights

    def watched(self: HfCausalLm, path: Path) -> None:
        empty.append(all(parameter.is_meta for parameter in self.parameters()))
        read(self, path)

    monkeypatch.setattr(HfCausalLm, "load_weights", watched)
    zippkit.load(tmp_path / "model")
    assert empty == [True], "it has no values of its own when they are read"


def test_a_tower_that_replaces_what_it_should_fill_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(self: Decoder, path: Path) -> None:
        self.norm.weight = nn.Parameter(read_tensors(path)["norm.weight"])

    made = zippkit.compile(make_spec({"text": tower(1, 8, freeze=True)}))
    randomise(made.model)
    made.save(tmp_path / "model")
    source = str(tmp_path / "model" / "towers" / "text")
    spec = make_spec({"text": tower(1, 8, freeze=True, weights=source)})
    zippkit.compile(spec).save(tmp_path / "named")
    monkeypatch.setattr(Decoder, "load_weights", replace)
    with pytest.raises(ZippkitError, match=r"loading weights replaced norm.weight, .* must copy values into"):
        zippkit.compile(spec)
    with pytest.raises(ZippkitError, match=r"towers/text: loading weights replaced norm.weight"):
        zippkit.load(tmp_path / "named")
