"""One tower by itself: a copy of its source where it is frozen, and always something that a spec can name again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import zippkit
from helpers.compositions import link, make, make_spec, randomise, tower
from helpers.tiny_runs import finished_run, tiny_recipe
from helpers.tiny_runs import spec as tiny_spec
from helpers.tiny_runs import zippkit as command
from zippkit.batch.batch import TowerBatch
from zippkit.checkpoint.references import COMPANIONS
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.composition import load
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.model.run_tower import tower_logits
from zippkit.model.tower import Tower
from zippkit.model.weights import read_tensors
from zippkit.training.export import export_tower
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow


def named_again(folder: Path) -> dict[str, torch.Tensor]:
    """The tower of a spec that says nothing but where its weights are."""
    return (
        zippkit.compile(make_spec({"it": {"kind": "decoder", "weights": str(folder)}})).model.tower("it").state_dict()
    )


def assert_same_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@torch.no_grad()
def assert_transformers_agrees(folder: Path, tower: Tower, dtype: torch.dtype = torch.float32) -> None:
    """`AutoModelForCausalLM` loads all of the folder in its own dtype, and computes what the tower computes."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    assert model.dtype == dtype
    tokens = torch.randint(tower.config.vocab_size or 1, (2, 24), generator=torch.Generator().manual_seed(0))
    expected = tower_logits(tower.eval(), TowerBatch.alone(tokens))
    found = model.eval().float()(tokens).logits
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["text", "speech"])
def test_a_tower_of_a_run_is_named_in_another_spec(tmp_path: Path, name: str) -> None:
    lines = export_tower(finished_run(), name, tmp_path / "out")
    assert_same_state(named_again(tmp_path / "out"), load(finished_run()).model.tower(name).state_dict())
    assert lines[0].startswith(f"tower {name}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "no temporary folder is left"


def test_a_frozen_tower_is_its_source_byte_for_byte(tmp_path: Path) -> None:
    lines = export_tower(finished_run(), "text", tmp_path / "out")
    source = finished_run() / "towers" / "text"
    for file in source.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert len(lines) == 1
    assert f"frozen, byte for byte as in {source}: model.safetensors SHA-256 " in lines[0]


def test_a_source_without_a_config_leaves_with_one(tmp_path: Path) -> None:
    module = make({"text": tower(1, 8)}).model.tower("text")
    randomise(module)
    write_tower(tmp_path / "source", module, "decoder")
    (tmp_path / "source" / "tower.json").unlink()
    spec = tower(1, 8, weights=str(tmp_path / "source"), freeze=True)
    zippkit.compile(make_spec({"text": spec})).save(tmp_path / "model")
    assert len(export_tower(tmp_path / "model", "text", tmp_path / "out")) == 1
    assert_same_state(named_again(tmp_path / "out"), module.state_dict())
    (tmp_path / "single").mkdir()
    shutil.copy(tmp_path / "source" / "model.safetensors", tmp_path / "single" / "text.safetensors")
    spec["weights"] = str(tmp_path / "single" / "text.safetensors")
    zippkit.compile(make_spec({"text": spec})).save(tmp_path / "model")
    export_tower(tmp_path / "model", "text", tmp_path / "from_file")
    assert names_in(tmp_path / "from_file") == ["config.json", "model.safetensors", "tower.json"]
    assert_same_state(named_again(tmp_path / "from_file"), module.state_dict())


def test_what_has_moved_is_not_passed_off_as_its_source(tmp_path: Path) -> None:
    made = load(finished_run())
    with torch.no_grad():
        made.model.get_parameter("towers.text.norm.weight")[0] += 1
    made.save(tmp_path / "model")
    told = r"'text': the spec freezes it, but it differs from its first source in towers.text.norm.weight; it is not"
    with pytest.raises(CheckpointError, match=told):
        export_tower(tmp_path / "model", "text", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    thawed = {n: t.model_copy(update={"freeze": False}) for n, t in made.spec.towers.items()}
    load(tmp_path / "model", spec=made.spec.model_copy(update={"towers": thawed})).save(tmp_path / "thawed")
    assert str(finished_run()) not in export_tower(tmp_path / "thawed", "text", tmp_path / "out")[0]
    assert torch.equal(
        named_again(tmp_path / "out")["norm.weight"], made.model.tower("text").state_dict()["norm.weight"]
    )


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ZippkitError, match="no tower is called 'txet'; did you mean 'text'"):
        export_tower(finished_run(), "txet", tmp_path / "out")
    with pytest.raises(ZippkitError, match="tower 'text' has no adapters that could be merged; leave out --merge"):
        export_tower(finished_run(), "text", tmp_path / "out", merge=True)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        export_tower(tmp_path / "nowhere", "text", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").write_text("all of it")
    (tmp_path / "file").write_text("all of it")
    for place in ("there", "file"):
        with pytest.raises(ZippkitError, match=f"{place}: exists; choose another --out"):
            export_tower(finished_run(), "text", tmp_path / place)
    (tmp_path / "empty").mkdir()
    export_tower(finished_run(), "text", tmp_path / "empty")


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    done = command("export", finished_run(), "--tower", "text", "--out", "text", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "text"
    again = command("export", finished_run(), "--tower", "text", "--out", "text", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "text: exists; choose another --out\n"


def lora() -> zippkit.Composition:
    text = tower(2, 8, freeze=True, lora={"rank": 2, "pattern": "layers.*.self_attn.*"})
    made = zippkit.compile(make_spec({"text": text, "speech": tower(2, 8, 30)}, [link("speech", "text", every=1)]))
    randomise(made.model.adapters)
    return made


def test_adapters_are_merged_on_request_and_left_out_otherwise(tmp_path: Path) -> None:
    made = lora()
    made.save(tmp_path / "model")
    lines = export_tower(tmp_path / "model", "text", tmp_path / "plain")
    assert lines[1] == "its adapters are left out; --merge adds them into the weights"
    base = made.model.tower("text").state_dict()
    assert all(torch.equal(named_again(tmp_path / "plain")[key], tensor) for key, tensor in base.items())
    assert "its adapters merged" in export_tower(tmp_path / "model", "text", tmp_path / "merged", merge=True)[0]
    merged = named_again(tmp_path / "merged")
    moved = {key for key, tensor in base.items() if not torch.equal(merged[key], tensor)}
    assert moved == {key for key in base if ".self_attn." in key}
    # Without links in the way, the merged tower alone computes what tower and adapters computed.
    batch = made.collate([[zippkit.Segment("text", torch.tensor([1, 2, 3]))]])
    alone = zippkit.compile(make_spec({"text": {"kind": "decoder", "weights": str(tmp_path / "merged")}}))
    with torch.no_grad():
        expected, found = made.model.eval()(batch)["text"], alone.model.eval()(batch)["text"]
    assert torch.allclose(found, expected, atol=1e-5)
    assert read_tensors(tmp_path / "model" / "adapters.safetensors")


LLAMA = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-3,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": LLAMA | {"head_dim": 6, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 2},
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BESIDE = {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def hub(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A folder as a model comes from a hub: weights, config, and files about generation and tokens."""
    config = transformers.AutoConfig.for_model(name, **(MODELS[name] | IDS | changes))
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomise(model)
    model.to(dtype).save_pretrained(folder)
    for file in BESIDE - {"generation_config.json"}:
        (folder / file).write_text(f'{{"it": "{file}"}}')
    return folder


def composed(text: dict[str, Any]) -> zippkit.Composition:
    return zippkit.compile(make_spec({"text": text, "speech": tower(1, 8, 30)}, [link("speech", "text", every=1)]))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("freeze", [True, False])
def test_transformers_loads_a_tower_that_came_from_it(tmp_path: Path, name: str, freeze: bool) -> None:
    source = hub(tmp_path / "hub", name)
    made = composed({"kind": "hf_causal_lm", "config": {"path": str(source)}, "freeze": freeze})
    if not freeze:
        randomise(made.model.tower("text"), 1)
    made.save(tmp_path / "model")
    lines = export_tower(tmp_path / "model", "text", tmp_path / "out")
    assert len(lines) == 1
    assert_transformers_agrees(tmp_path / "out", made.model.tower("text"))
    assert {*BESIDE, "config.json"} <= set(names_in(tmp_path / "out"))
    unchanged = BESIDE | ({"config.json", "model.safetensors"} if freeze else set())
    assert all((tmp_path / "out" / file).read_bytes() == (source / file).read_bytes() for file in unchanged)


def test_a_frozen_file_of_16_bits_leaves_in_16_bits(tmp_path: Path) -> None:
    source = hub(tmp_path / "hub", dtype=torch.bfloat16)
    made = composed(
        {"kind": "hf_causal_lm", "weights": str(source / "model.safetensors"), "freeze": True}
        | {"config": {"model": LLAMA | IDS | {"model_type": "llama"}}}
    )
    made.save(tmp_path / "model")
    export_tower(tmp_path / "model", "text", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert_transformers_agrees(tmp_path / "out", made.model.tower("text"), torch.bfloat16)
    assert set(names_in(tmp_path / "out")) >= BESIDE, "they stood beside the file"


@pytest.mark.parametrize("config", [{}, {"tied": False}, {"n_kv_heads": 1, "head_dim": 6, "norm_eps": 1e-2}], ids=str)
@pytest.mark.parametrize("freeze", [True, False])
def test_transformers_reads_a_decoder_as_a_llama(tmp_path: Path, config: dict[str, Any], freeze: bool) -> None:
    made = composed(tower(2, 16, config={"rope_theta": 77.0, **config}, freeze=freeze))
    randomise(made.model)
    made.save(tmp_path / "model")
    export_tower(tmp_path / "model", "text", tmp_path / "out")
    assert_transformers_agrees(tmp_path / "out", made.model.tower("text"))
    model = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (model.bos_token_id, model.eos_token_id) == (18, 19), "its frame"
    # By itself, the config.json tells zippkit the same decoder.
    (tmp_path / "out" / "tower.json").unlink()
    assert_same_state(named_again(tmp_path / "out"), made.model.tower("text").state_dict())


def test_a_merged_tower_is_loaded_by_transformers(tmp_path: Path) -> None:
    source = hub(tmp_path / "hub")
    lora = {"rank": 2, "pattern": "model.layers.*.self_attn.*_proj.weight"}
    made = composed({"kind": "hf_causal_lm", "config": {"path": str(source)}, "freeze": True, "lora": lora})
    randomise(made.model.adapters)
    made.save(tmp_path / "model")
    export_tower(tmp_path / "model", "text", tmp_path / "out", merge=True)
    assert_transformers_agrees(tmp_path / "out", made.model.tower("text"))
    assert {*BESIDE, "config.json"} <= set(names_in(tmp_path / "out"))


def test_what_a_config_says_otherwise_than_its_folder_is_written(tmp_path: Path) -> None:
    """The weights stay, byte for byte; what is computed with them is told as the spec has it."""
    source = hub(tmp_path / "hub")
    text = {"kind": "hf_causal_lm", "weights": str(source), "frame": {"begin": 7, "end": 8}, "freeze": True}
    made = composed(text | {"config": {"model": LLAMA | IDS | {"model_type": "llama", "rms_norm_eps": 1e-1}}})
    made.save(tmp_path / "model")
    export_tower(tmp_path / "model", "text", tmp_path / "out")
    assert_transformers_agrees(tmp_path / "out", made.model.tower("text"))
    again = make_spec({"it": {"kind": "hf_causal_lm", "weights": str(tmp_path / "out")}}).towers["it"].settings
    assert again == made.spec.towers["text"].settings


def test_what_the_folder_does_not_hold_is_said(tmp_path: Path) -> None:
    text = tower(1, 8, extend_vocabulary={"music": 5})
    image = {"kind": "image_units", "config": {"side": 4, "levels": 6, "dim": 8, "n_layers": 1, "n_heads": 2}}
    zippkit.compile(make_spec({"text": text, "image": image})).save(tmp_path / "model")
    assert export_tower(tmp_path / "model", "text", tmp_path / "text")[1:] == [
        "the ids that were added to its vocabulary (music) are left out"
    ]
    assert export_tower(tmp_path / "model", "image", tmp_path / "image")[1:] == [
        "transformers has no model that computes what kind 'image_units' does; only zippkit reads this folder"
    ]


@pytest.mark.parametrize("freeze", [True, False])
def test_what_stood_beside_the_weights_survives_every_chain(
    tmp_path: Path, freeze: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, stopped, resumed past the checkpoints that are kept, started from, and exported."""
    source = hub(tmp_path / "hub", vocab_size=7)
    text = {"kind": "hf_causal_lm", "weights": str(source), "freeze": freeze}
    spec = tiny_spec()
    spec["towers"]["text"] = text
    few = {"steps": 4, "save_every": 1, "batch_size": 2}
    first = tiny_recipe(tmp_path / "first", few, spec=spec)
    with monkeypatch.context() as patch, pytest.raises(ZippkitError, match="stopped after step 1"):
        patch.setattr("zippkit.training.stop_signals.StopRequest.asked", True)
        train(first, tmp_path / "first" / "run")
    if not freeze:
        for name in BESIDE:
            (source / name).unlink()
    train(first, tmp_path / "first" / "run")
    second = tiny_recipe(tmp_path / "second", few, spec=spec, start_from=str(tmp_path / "first" / "run"))
    train(second, tmp_path / "second" / "run")
    export_tower(tmp_path / "second" / "run", "text", tmp_path / "out")
    assert_transformers_agrees(tmp_path / "out", load(tmp_path / "second" / "run").model.tower("text"))
    assert {*BESIDE, "config.json"} <= set(names_in(tmp_path / "out"))
    if freeze:
        original = {path.name: path.read_bytes() for path in source.iterdir()}
        assert {name: (tmp_path / "out" / name).read_bytes() for name in original} == original


def test_the_tokenizer_of_the_run_goes_along(tmp_path: Path) -> None:
    export_tower(finished_run(), "text", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("four two", add_special_tokens=False).input_ids == [3, 6]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert set(COMPANIONS) >= {"tokenizer.json", "tokenizer_config.json"}
