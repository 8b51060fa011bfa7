"""Encoders of families that nobody wrote down, of text too: exact states, or one sentence that says why not."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

import zippkit
from helpers.compositions import link, make_spec, tower
from helpers.tiny_encoders import TEXT, text_config
from zippkit.batch.batch import Segment
from zippkit.batch.collate import collate
from zippkit.errors import CheckpointError, DataError, SpecError, ZippkitError
from zippkit.evaluation.certificates import verify
from zippkit.evaluation.certificates.probe import randomize_zero_inits
from zippkit.model.run_tower import tower_states
from zippkit.spec import registry
from zippkit.testing import check_tower
from zippkit_towers.hf_encoder import guessed as hf_encoder_guessed
from zippkit_towers.hf_encoder import guessed_inputs
from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.dissection import UnfitError, dissect
from zippkit_towers.hf_encoder.families import FAMILIES
from zippkit_towers.hf_encoder.guessed_shape import EXACT
from zippkit_towers.hf_encoder.tower import HfEncoder

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
PIXELS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PIXELS |= {"image_size": 8, "patch_size": 4, "num_channels": 1}
WAVES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 9}
WAVES |= {"conv_dim": [8, 12], "conv_kernel": [5, 3], "conv_stride": [3, 2], "num_feat_extract_layers": 2}
WAVES |= {"num_conv_pos_embeddings": 5, "num_conv_pos_embedding_groups": 2}
OTHERS: dict[str, dict[str, Any]] = {
    **TEXT,
    "siglip": {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"} | PIXELS},
    "dinov2": {"model_type": "dinov2"} | PIXELS,
    "wavlm": {"model_type": "wavlm"} | WAVES,
    "unispeech": {"model_type": "unispeech"} | WAVES,
}
every_other = pytest.mark.parametrize("name", OTHERS)


def config(name: str, **more: Any) -> HfEncoderConfig:
    return HfEncoderConfig.model_validate({"model": OTHERS[name], **more})


def zipped(name: str, freeze: bool = True, **where: Any) -> zippkit.Composition:
    encoder = {"kind": "hf_encoder", "config": {"model": OTHERS[name]}, "freeze": freeze}
    towers = {"text": tower(2, 16, 12), "given": encoder}
    return zippkit.compile(make_spec(towers, [link("given", "text", **(where or {"every": 1}))]))


@every_other
def test_the_protocol_is_kept(name: str) -> None:
    assert check_tower(config(name)) == ["cache: not checked, the tower is not causal"]


@pytest.mark.parametrize(("name", "freeze"), [("bert", True), ("bert", False), ("t5", False), ("dinov2", False)])
def test_certificates_hold_on_an_encoder_that_text_reads(name: str, freeze: bool) -> None:
    report = verify(zipped(name, freeze))
    assert report.passed, str(report)


def test_certificates_hold_on_a_text_encoder_that_two_towers_rewrite_and_read() -> None:
    encoder = {"kind": "hf_encoder", "config": {"model": OTHERS["bert"]}}
    towers = {"text": tower(2, 16, 12), "given": encoder, "speech": tower(2, 16, 9)}
    rewritten = [{"from": 1, "into": 1}]
    links = [link("given", "text", every=1), link("speech", "given", sites=rewritten), link("given", "speech", every=2)]
    report = verify(zippkit.compile(make_spec(towers, links)))
    assert report.passed, str(report)


@torch.no_grad()
def test_text_between_two_texts_of_an_encoder_reads_only_the_first() -> None:
    z = zipped("bert")

    def logits(*given: list[int]) -> Tensor:
        model = copy.deepcopy(z.model).eval()
        randomize_zero_inits(model)
        row = [Segment("given", given[0]), Segment("text", [1, 2]), Segment("given", given[1]), Segment("text", [3])]
        found: Tensor = model(z.collate([row]))["text"][0]
        return found

    first, second, other = [5, 6, 7], [8, 9], [10, 11]
    moved = (logits(first, second) != logits(first, other)).any(dim=-1)
    assert moved.tolist() == [False] * 4 + [True] * 3
    assert (logits(first, second) != logits([*other, 4], second)).any(dim=-1).all()


@every_other
def test_a_folder_s_states_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """By `from_pretrained`, with explicit nulls and whatever else the folder says."""
    torch.manual_seed(0)
    whole = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**OTHERS[name])).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    whole.save_pretrained(tmp_path)
    built = zippkit.compile(
        make_spec({"it": {"kind": "hf_encoder", "weights": tmp_path, "frame": None}}, [])
        if name not in TEXT
        else make_spec({"it": {"kind": "hf_encoder", "weights": tmp_path, "frame": {"begin": 1, "end": 2}}}, [])
    ).model.tower("it")
    own = whole.encoder if name == "t5" else getattr(whole, "vision_model", whole)
    segments = [guessed_inputs.example(built.config, size) for size in (6, 3)]
    inner = [s[1:-1] for s in segments] if name in TEXT else segments
    batch = collate(
        [[Segment("it", inner[0]), Segment("it", inner[1])], [Segment("it", inner[1])]], {"it": built.config}
    )
    key = {"text": "input_ids", "image": "pixel_values", "sound": "input_values"}[built.config.feed_kind]
    if built.config.feed_kind == "sound":
        segments = [(s - s.mean()) / np.sqrt(s.var() + 1e-7) for s in segments]
    if name in TEXT:
        segments = [np.array([1, *s, 2]) for s in inner]
    with torch.no_grad():
        found = tower_states(built.eval(), batch.towers["it"])
        alone = [own(**{key: torch.from_numpy(s)[None]}).last_hidden_state[0] for s in segments]
    torch.testing.assert_close(found[0, : len(alone[0]) + len(alone[1])], torch.cat(alone), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found[1, : len(alone[1])], alone[1], rtol=1e-4, atol=2e-5)


def test_nothing_predicts_what_an_encoder_reads() -> None:
    z = zipped("bert")
    batch = z.collate([[Segment("given", [5, 6]), Segment("text", [1])]])
    assert batch.outputs == ("text",)
    assert z.model.tower("given").config.frame is not None
    with pytest.raises(ZippkitError, match="'given' is not causal, so it cannot generate"):
        zippkit.generate(z, [Segment("text", [1])], outputs=["given"])
    (text,) = zippkit.generate(z, [Segment("given", [5, 6])], outputs=["text"], max_tokens=3)
    assert text.tower == "text"


def test_each_segment_may_be_as_long_as_an_encoder_has_positions() -> None:
    c = text_config("roberta")
    assert c.max_len == 30
    collate([[Segment("it", [5] * 28), Segment("it", [5] * 28)]], {"it": c})
    with pytest.raises(DataError, match="31 it tokens; the tower takes at most 30"):
        collate([[Segment("it", [5] * 29)]], {"it": c})


def test_nothing_is_random_in_training_and_unused_parts_are_left_out() -> None:
    built = HfEncoder(config("bert")).train()
    names = [name for name, _ in built.named_parameters()]
    assert not [name for name in names if name.startswith("pooler")]
    batch = collate([[Segment("it", [5, 6, 7])]], {"it": built.config}).towers["it"]
    with torch.no_grad():
        assert torch.equal(tower_states(built, batch), tower_states(built, batch))


class AddsBetween(nn.Module):
    """Something stands between its layers."""

    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(9, 4), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, input_ids: Tensor) -> Any:
        hidden = self.layers[1](1.0 + self.layers[0](self.embed(input_ids)))
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=hidden)


class AddsBehind(AddsBetween):
    def forward(self, input_ids: Tensor) -> Any:
        hidden = 1.0 + self.layers[1](self.layers[0](self.embed(input_ids)))
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=hidden)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (AddsBetween, "layer 1 of 'layers' is not given the states of the layer before it as they are"),
        (AddsBehind, "more than norms stands between its last layer and its last_hidden_state"),
    ],
)
def test_what_more_than_layers_do_is_refused(model: type[nn.Module], words: str) -> None:
    with torch.no_grad(), pytest.raises(UnfitError, match=words):
        dissect(model(), {"input_ids": torch.ones(1, 3, dtype=torch.long)}, 2, 4)


def test_a_model_that_runs_otherwise_than_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = hf_encoder_guessed.run_layer
    monkeypatch.setattr(hf_encoder_guessed, "run_layer", lambda *given: 1.01 * right(*given))
    with pytest.raises(CheckpointError, match=r"a 'bert' model, run layer by layer, differs by \d.* from transformers"):
        zipped("bert")


def test_a_frozen_encoder_may_be_in_bfloat16() -> None:
    encoder = {"kind": "hf_encoder", "config": {"model": OTHERS["bert"]}, "freeze": True, "dtype": "bf16"}
    z = zippkit.compile(make_spec({"text": tower(2, 16, 12), "given": encoder}, [link("given", "text", every=1)]))
    assert z.model.tower("given").dtype == torch.bfloat16
    batch = z.collate([[Segment("given", [5, 6]), Segment("text", [1])]])
    assert z.model(batch)["text"].isfinite().all()


def test_explicit_nulls_are_kept() -> None:
    assert config("bert", model={**OTHERS["bert"], "eos_token_id": None}).model["eos_token_id"] is None


@pytest.mark.parametrize(
    ("name", "odd", "words"),
    [
        ("bert", {"hidden_act": "geluu"}, "transformers builds no 'bert' model"),
        ("bert", {"num_attention_heads": 0}, "transformers builds no 'bert' model"),
        ("bert", {"intermediate_size": -3}, "transformers builds no 'bert' model"),
        ("bert", {"layer_norm_eps": "small"}, "'bert' model"),
        ("bert", {"num_attention_heads": 3}, "transformers builds no 'bert' model"),
        ("bert", {"max_position_embeddings": [1]}, "transformers builds no 'bert' model"),
        ("bert", {"hidden_size": 0}, "hidden_size is 0; expected a whole number above 0"),
        ("bert", {"num_hidden_layers": -1}, "num_hidden_layers is -1; expected a whole number above 0"),
        ("bert", {"vocab_size": "many"}, "vocab_size is 'many'; expected a whole number above 0"),
        ("dinov2", {"image_size": -8}, "image_size is -8; expected a whole number above 0"),
        ("wavlm", {"conv_stride": 3}, "conv_stride is 3; expected a list of whole numbers above 0"),
        ("wavlm", {"num_conv_pos_embedding_groups": 0}, "transformers builds no 'wavlm' model"),
        ("wavlm", {"hidden_act": 3}, "transformers builds no 'wavlm' model"),
    ],
)
def test_odd_settings_are_one_message(name: str, odd: dict[str, Any], words: str) -> None:
    spec = {"kind": "hf_encoder", "config": {"model": {**OTHERS[name], **odd}}}
    with pytest.raises(ZippkitError) as told:
        zippkit.compile(make_spec({"text": tower(2, 16, 12), "given": spec}, [link("given", "text", every=1)]))
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_kind_that_is_a_model_s_is_told_its_kind(tmp_path: Path) -> None:
    for name, kind in (
        ("bert", "hf_encoder"),
        ("siglip", "hf_encoder"),
        ("llama", "hf_causal_lm"),
        ("opt", "hf_causal_lm"),
    ):
        (tmp_path / "spec.yaml").write_text(f"name: a\ntowers:\n  text: {{kind: {name}}}\n")
        with pytest.raises(SpecError, match=rf"no tower of kind '{name}'.*; expected `kind: {kind}` with .*`{name}`"):
            zippkit.load_spec(tmp_path / "spec.yaml")
    with pytest.raises(registry.UnknownKindError, match="did you mean 'hf_encoder'"):
        registry.config_class(registry.TOWERS, "hf_encodr")


def the_page_s_script() -> Any:
    place = importlib.util.spec_from_file_location("encoder_families", DOCS / "encoder_families.py")
    assert place is not None and place.loader is not None
    script = importlib.util.module_from_spec(place)
    # Dataclasses look their module up by its name.
    sys.modules[place.name] = script
    place.loader.exec_module(script)
    return script


def test_the_page_of_families_says_what_is_so() -> None:
    """A quick sample; all of them take minutes."""
    page = (DOCS / "encoders.md").read_text()
    assert "site-packages" not in page and "alloc_cpu" not in page
    tried = the_page_s_script().tried
    for family in ("albert", "deit", "flaubert", "mobilebert", "unispeech-sat", "clap", "whisper"):
        assert f"{tried(family)}\n" in page, family


def test_a_kind_is_told_for_the_families_that_the_page_says_are_exact() -> None:
    exact = re.findall(r"^\| `(\S+)` \| yes", (DOCS / "encoders.md").read_text(), flags=re.MULTILINE)
    assert set(exact) - set(FAMILIES) == EXACT
