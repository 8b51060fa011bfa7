"""Decoders that nobody looked at by hand: found in their module tree, exact or refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import zippkit
from helpers.compositions import link, tower
from zippkit.batch.batch import Segment, TowerBatch
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.generation.api import generate_batch
from zippkit.loading import check_spec
from zippkit.model.run_tower import tower_logits
from zippkit.spec.composition_spec import CompositionSpec
from zippkit_towers.hf_causal_lm import families as hf_causal_lm_families
from zippkit_towers.hf_causal_lm import transformers_model
from zippkit_towers.hf_causal_lm.cache import Slots
from zippkit_towers.hf_causal_lm.config import HfCausalLmConfig
from zippkit_towers.hf_causal_lm.families import decoders, known_to_transformers
from zippkit_towers.hf_causal_lm.parity import TOLERANCE
from zippkit_towers.hf_causal_lm.tower import HfCausalLm

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import families

pytestmark = pytest.mark.slow

EXACT = ("starcoder2", "stablelm", "opt", "cohere2", "deepseek_v3", "gpt_oss", "falcon", "gptj", "qwen2_moe")
REFUSED = {
    "bloom": "want 'alibi', which is not given to them",
    "bert": "looks ahead in its own forward, so it is no decoder",
    "jamba": "layers of kind linear_attention, which are not run",
    "minimax_m3_vl_text": "limits its attention by index_",
    "gpt_neo": "limits its attention by window_size",
    "mamba": "take no cache of keys and values",
}


def build(family: str) -> HfCausalLm:
    """A tiny tower of random weights, of the first settings by which it is exact."""
    for data in families.tiny_configs(family):
        try:
            torch.manual_seed(0)
            made = HfCausalLm(HfCausalLmConfig.model_validate({"model": data})).eval()
            with torch.no_grad():
                for parameter in made.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(std=0.2)
            made.check()
        except ZippkitError:
            continue
        return made
    raise AssertionError(f"{family} is not exact")


def reference(made: HfCausalLm) -> Any:
    """Transformers' own model of the same weights."""
    config = transformers.AutoConfig.for_model(**made.config.model)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    missing, unexpected = model.load_state_dict(made.state_dict(), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, 90, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", EXACT)
@torch.no_grad()
def test_a_family_that_nobody_named_is_exact(family: str) -> None:
    row = families.tried(family)
    assert row.gap is not None, row.reason
    assert row.gap < TOLERANCE / 10
    made, given = build(family), tokens(2, 30)
    assert torch.allclose(tower_logits(made, TowerBatch.alone(given)), reference(made)(given).logits, atol=1e-4)


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_refused_is_told_in_one_sentence(family: str) -> None:
    row = families.tried(family)
    assert row.gap is None
    assert REFUSED[family] in row.reason and "\n" not in row.reason


@pytest.mark.parametrize("family", ["stablelm", "opt", "deepseek_v3"])
@torch.no_grad()
def test_rows_of_other_lengths_are_generated_as_transformers_does(family: str) -> None:
    made = build(family)
    own = reference(made)
    text = {"kind": "hf_causal_lm", "config": {"model": made.config.model}}
    zipped = zippkit.compile(CompositionSpec.model_validate({"name": "alone", "towers": {"text": text}}))
    zipped.model.tower("text").load_state_dict(made.state_dict())
    prompts = [tokens(3).tolist(), tokens(2, 6)[1].tolist()]
    answers = generate_batch(zipped, [[Segment("text", ids)] for ids in prompts], ["text"], max_tokens=9)
    for ids, (answer,) in zip(prompts, answers, strict=True):
        row = torch.tensor([[1, *ids, 2, 1]])
        for found in [*answer.tokens, *([2] if len(answer.tokens) < 9 else [])]:
            assert int(own(row).logits[0, -1].argmax()) == found
            row = torch.cat([row, torch.tensor([[found]])], dim=1)


@pytest.mark.parametrize("family", ["opt", "deepseek_v3"])
def test_zipped_it_is_proven(family: str) -> None:
    text = {"kind": "hf_causal_lm", "config": {"model": build(family).config.model}, "freeze": True}
    links = [link("speech", "text", every=1), link("text", "speech", every=2)]
    links += [{"kind": "prefix", "from": "speech", "into": "text", "name": "before"}]
    data = {"name": "zipped", "towers": {"text": text, "speech": tower(2)}, "links": links}
    report = zippkit.verify(zippkit.compile(CompositionSpec.model_validate(data)))
    assert report.passed, str(report)


def test_experts_that_cannot_be_kept_apart_are_told() -> None:
    text = {"kind": "hf_causal_lm", "config": {"model": build("jetmoe").config.model}}
    zipped = zippkit.compile(CompositionSpec.model_validate({"name": "alone", "towers": {"text": text}}))
    (c1,) = zippkit.verify(zipped, only=["C1"]).certificates
    # Whether any bit moves is chance; what is said does not depend on it.
    assert "text ran experts that multiply all rows at once, whose last bits depend on each other" in c1.detail


@torch.no_grad()
def test_a_saved_folder_comes_back(tmp_path: Path) -> None:
    made = build("starcoder2")
    reference(made).save_pretrained(tmp_path)
    text = {"kind": "hf_causal_lm", "config": {"path": str(tmp_path)}}
    zipped = zippkit.compile(CompositionSpec.model_validate({"name": "alone", "towers": {"text": text}}))
    batch = TowerBatch.alone(tokens(1, 8))
    assert torch.equal(tower_logits(zipped.model.tower("text").eval(), batch), tower_logits(made, batch))


def test_each_part_of_the_comparison_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout under another name, positions that layers are not given, rows that share their places in the cache."""
    biogpt = build("biogpt")
    monkeypatch.setattr(transformers_model, "_RANDOM", ())
    random = HfCausalLm(biogpt.config)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="in training mode"):
        random.check()
    # Its queries are scaled by their place, past the length that it was trained with.
    scaled = build("ministral3")
    rope = scaled.config.model["rope_parameters"] | {
        "llama_4_scaling_beta": 0.5,
        "original_max_position_embeddings": 32,
    }
    made = HfCausalLm(HfCausalLmConfig.model_validate({"model": scaled.config.model | {"rope_parameters": rope}}))
    made.check()
    layer = HfCausalLm.layer

    def near(self: Any, index: int, hidden: Any, context: Any) -> Any:
        return layer(self, index, hidden, replace(context, positions=context.positions.clamp(max=31)))

    monkeypatch.setattr(HfCausalLm, "layer", near)
    with pytest.raises(CheckpointError, match="at its last positions"):
        made.check()
    monkeypatch.undo()
    update = Slots.update

    def shared(self: Any, *args: Any, **more: Any) -> Any:
        self.slots = self.slots[:1].expand_as(self.slots)
        return update(self, *args, **more)

    monkeypatch.setattr(Slots, "update", shared)
    with pytest.raises(CheckpointError, match="part by part"):
        made.check()


def test_the_page_tells_of_every_family() -> None:
    page = families.PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [row[0].strip("| `") for row in rows] == sorted(known_to_transformers())
    assert f"With transformers {transformers.__version__} " in page
    told = {row[0].strip("| `"): row[1] for row in rows}
    assert {told[family] for family in EXACT} == {"yes"} and {told[family] for family in REFUSED} == {"no"}
    assert sum(answer == "yes" for answer in told.values()) >= 60


def test_the_families_that_are_exact_are_hinted_at() -> None:
    """`kind: opt` is told of this kind, and `kind: bert` is not."""
    page = families.PAGE.read_text(encoding="utf-8")
    exact = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and "| yes |" in line}
    # This one transcribes speech, and is run by its text model alone.
    assert exact - {"moss_transcribe_diarize"} <= decoders()
    assert all(map(HfCausalLmConfig.runs, ("opt", "falcon", "bloom", *EXACT)))
    assert not any(map(HfCausalLmConfig.runs, ("bert", "bart", "t5", "whisper", "brand_new")))


def test_check_asks_transformers_source_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without transformers, `check` takes what it cannot know; the sizes are told by `config.json`."""
    known_to_transformers.cache_clear()
    monkeypatch.setattr(hf_causal_lm_families, "find_spec", lambda name: None)
    try:
        assert known_to_transformers() == frozenset()
        model = {"model_type": "brand_new", "d_model": 8, "n_layers": 2, "vocab_size": 9, "max_seq_len": 5}
        text = {"kind": "hf_causal_lm", "config": {"model": model}, "frame": {"begin": 1, "end": 2}}
        found, complaints = check_spec({"name": "x", "towers": {"text": text}})
        assert found is not None and not complaints
        settings = found.towers["text"].settings
        assert (settings.dim, settings.n_layers, settings.vocab_size, settings.max_len) == (8, 2, 9, 5)
    finally:
        known_to_transformers.cache_clear()
