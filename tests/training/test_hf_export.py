"""A whole composition leaves home: transformers loads it without zippkit, and it says the same."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import zippkit
from helpers.compositions import link, make, make_spec, randomise, tower
from helpers.tiny_encoders import MODELS, config
from zippkit import Sampling, Segment
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.training.hf_export.alone import Asked, run_alone
from zippkit.training.hf_export.description import refuse_foreign
from zippkit.training.hf_export.modeling_file import ORDER, source
from zippkit.training.hf_export.writing import export_model

pytestmark = pytest.mark.slow

ROWS = [
    [("speech", [1, 2, 3, 4, 5]), ("text", [3, 4])],
    [("speech", [9, 8]), ("text", [5, 6, 7, 8])],
    [("speech", [7]), ("text", [])],
]
BROUGHT = {"torch", "transformers", "safetensors", "huggingface_hub"}
"""The last two come with transformers."""
TO = ["text", "speech", "text"]
GREEDY = {"outputs": TO, "max_new_tokens": 9}
DRAWN = {"do_sample": True, "temperature": 0.9, "top_k": 8, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 3}


def towers(**more: Any) -> dict[str, Any]:
    return {"text": tower(freeze=True, **more), "speech": tower(6, 24, 30)}


SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
IDS = {"bos_token_id": 38, "eos_token_id": 39, "num_attention_heads": 4, "num_key_value_heads": 2}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 4}
LLAMA = {"model_type": "llama", "tie_word_embeddings": True, "max_position_embeddings": 64} | SIZES | IDS
GEMMA = {"model_type": "gemma2", "query_pre_attn_scalar": 8} | WINDOWS | SIZES | IDS
GPT = {"model_type": "gpt2", "vocab_size": 40, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64} | IDS
BOTH = [link("speech", "text", every=1), link("text", "speech", every=3)]


def hf(model: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "hf_causal_lm", "config": {"model": model}, "freeze": True, **more}


def joint(a: str, b: str) -> dict[str, Any]:
    return {"kind": "joint_attention", "from": a, "into": b, "every": 1}


def prefix(kind: str, **config: Any) -> dict[str, Any]:
    return {"kind": kind, "from": "speech", "into": "text", "config": config}


MADE: dict[str, Callable[[], zippkit.Composition]] = {
    "both ways": lambda: make(towers(), [link("speech", "text", every=2), link("text", "speech", every=3)]),
    "before layers, plain, projected": lambda: make(
        towers(input_projection={"depth": 2}),
        [
            link(
                "speech",
                "text",
                every=2,
                config={"n_heads": 2, "gate": "vector", "positions": "keys", "placement": "before"},
            ),
            link("text", "speech", kind="cross_attention", every=2, config={"n_heads": 2, "pace": 3.5}),
        ],
    ),
    "prefix and LoRA": lambda: make(
        towers(lora={"rank": 2, "pattern": "layers.*.self_attn.*"}), [prefix("prefix", stack=2)]
    ),
    "resampler": lambda: make(towers(), [prefix("resampler", queries=3, n_heads=2, depth=1)]),
    "qformer that is attended to": lambda: make(
        towers(),
        [prefix("resampler", queries=3, n_heads=2, depth=1, design="qformer", output="cross_attention") | {"every": 2}],
    ),
    "joint attention": lambda: make(
        {"text": tower(), "speech": tower(4, 24, 30, config={"head_dim": 8})},
        [joint("speech", "text"), joint("text", "speech")],
    ),
    "one tower that hosts": lambda: make(
        {"text": tower(extend_vocabulary={"speech": {"size": 20}}, input_projection={"residual": False})}
    ),
    "llama in bfloat16": lambda: make({"text": hf(LLAMA, dtype="bf16"), "speech": tower(6, 24, 30)}, BOTH),
    "gemma2, eager, in windows": lambda: make({"text": hf(GEMMA), "speech": tower(6, 24, 30)}, BOTH),
    "gpt2 with LoRA": lambda: make(
        {"text": hf(GPT, lora={"rank": 2, "pattern": "*c_attn.weight"}), "speech": tower(6, 24, 30)}, BOTH
    ),
}
ENCODERS = ("whisper", "wav2vec2", "clip")


def listening(name: str) -> tuple[zippkit.Composition, Any]:
    """Text that reads an encoder by cross-attention and as a prefix, and rows for it."""
    heard = {"kind": "hf_encoder", "config": {"model": MODELS[name]}, "freeze": True}
    links = [
        link("heard", "text", every=2),
        {"kind": "prefix", "from": "heard", "into": "text", "name": "in_front"},
    ]
    sounds = [config(name).example_inputs(size, seed=size).tolist() for size in (7, 5)]
    rows = [[("heard", sound), ("text", ids)] for sound, ids in zip(sounds, ([3, 4], [5, 6, 7]), strict=True)]
    return make({"text": tower(freeze=True), "heard": heard}, links), rows


def segments(rows: Any) -> list[list[Segment]]:
    return [[Segment(name, ids) for name, ids in row] for row in rows]


def plain(found: list[list[Segment]]) -> list[Any]:
    return [[[each.tower, list(each.tokens)] for each in row] for row in found]


def worst(zipped: zippkit.Composition, rows: Any, logits: dict[int, torch.Tensor]) -> float:
    """Largest difference between an exported model's logits and those of the training forward."""
    batch, found = zipped.collate(segments(rows)), 0.0
    with torch.no_grad():
        expected = zipped.model.eval()(batch)
    for i, (name, _) in enumerate(rows[0]):
        of = zipped.graph.modalities[name].tower
        for row in range(len(rows)) if i in logits else ():
            own = (batch.towers[of].segment[row] == i) & ~batch.towers[of].inserted[row]
            theirs = logits[i][row, : int(own.sum())]
            found = max(found, float((expected[of][row][own] - theirs).abs().max()))
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, zippkit.Composition]:
    """Every composition by the folder that it was exported to; look at them, but leave them as they are."""
    root, found = tmp_path_factory.mktemp("exported"), {}
    for name, made in MADE.items():
        found[root / "out" / name] = zipped = made()
        zipped.save(root / "saved" / name)
        export_model(root / "saved" / name, root / "out" / name)
    return found


def test_every_kind_of_composition_says_the_same_without_zippkit(exported: dict[Path, zippkit.Composition]) -> None:
    """Greedy and drawn tokens are the same, logits differ by less than 1e-5."""
    ways = [{"segments": ROWS, **way} for way in (GREEDY, GREEDY | DRAWN)]
    told = run_alone([Asked(folder, ROWS, ways) for folder in exported])
    drawn = Sampling(temperature=0.9, top_k=8, top_p=0.95, repetition_penalty=1.2)
    for (folder, zipped), said in zip(exported.items(), told, strict=True):
        assert worst(zipped, ROWS, said.logits) < 1e-5, folder
        assert said.generated[0] == plain(zippkit.generate_batch(zipped, segments(ROWS), TO, 9)), folder
        assert said.generated[1] == plain(zippkit.generate_batch(zipped, segments(ROWS), TO, 9, drawn, 3)), folder


def test_encoders_are_run_by_transformers_own_classes(tmp_path: Path) -> None:
    made, asked = {name: listening(name) for name in ENCODERS}, []
    for name, (zipped, rows) in made.items():
        zipped.save(tmp_path / "saved" / name)
        export_model(tmp_path / "saved" / name, tmp_path / name)
        asked.append(Asked(tmp_path / name, rows, [{"segments": rows, "outputs": ["text"], "max_new_tokens": 9}]))
    for (name, (zipped, rows)), said in zip(made.items(), run_alone(asked), strict=True):
        assert worst(zipped, rows, said.logits) < 1e-5, name
        assert said.generated[0] == plain(zippkit.generate_batch(zipped, segments(rows), ["text"], 9)), name


def test_frozen_towers_may_be_named_and_are_known_by_their_hash(tmp_path: Path) -> None:
    """A tower of transformers and a decoder stand elsewhere; changed weights are refused when the model is loaded."""
    torch.manual_seed(0)
    own = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**LLAMA))
    own.save_pretrained(tmp_path / "llama")
    write_tower(tmp_path / "speech", make({"it": tower(6, 24, 30)}).model.tower("it"), "decoder")
    text = {"kind": "hf_causal_lm", "config": {"path": str(tmp_path / "llama")}, "freeze": True}
    speech = {"kind": "decoder", "weights": str(tmp_path / "speech"), "freeze": True, "frame": {"begin": 28, "end": 29}}
    zipped = zippkit.compile(make_spec({"text": text, "speech": speech}, BOTH))
    randomise(zipped.model.get_submodule("links"))
    zipped.save(tmp_path / "saved")
    told = export_model(tmp_path / "saved", tmp_path / "out", reference_frozen=True)
    assert told[0] == f"tower text: named, not copied: {tmp_path / 'llama'}"
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if name.startswith("towers.")]
    (said,) = run_alone([Asked(tmp_path / "out", ROWS)])
    assert worst(zipped, ROWS, said.logits) < 1e-5
    randomise(own, seed=5)
    own.save_pretrained(tmp_path / "llama")
    with pytest.raises(CheckpointError, match=r"cannot be run without zippkit: .*other weights"):
        run_alone([Asked(tmp_path / "out", ROWS)])


def test_the_file_is_what_ruff_likes_and_knows_nothing_else(exported: dict[Path, zippkit.Composition]) -> None:
    """Every name is imported, nothing is left over, and nothing is needed but what transformers brings."""
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=120", "--target-version=py311"]
    chosen = ["--select=E,F,W,I,UP,B,C4,SIM,RET,PIE,D", "--ignore=D107,D105,D102"]
    told = subprocess.run(
        [*ruff, *chosen, "--config=lint.pydocstyle.convention='google'", *exported],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout
    for file in (folder / "modeling_zipped.py" for folder in exported):
        imports = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
        named = {str(getattr(n, "module", None) or n.names[0].name).partition(".")[0] for n in imports}
        assert named - sys.stdlib_module_names <= BROUGHT, file


def test_only_what_is_used_is_written(tmp_path: Path) -> None:
    make(towers(), [link("speech", "text", every=2)]).save(tmp_path / "saved")
    export_model(tmp_path / "saved", tmp_path / "out")
    text = (tmp_path / "out" / "modeling_zipped.py").read_text()
    assert "class GatedCrossAttention(" in text
    for other in ("Resampler", "Prefix", "Adapted", "HfCausalLm", "AddedVocabulary", "only with", "zippkit.training"):
        assert other not in text


def test_every_part_stands_behind_those_that_it_needs() -> None:
    for i, name in enumerate(ORDER):
        needed = {
            line.split()[1].rpartition(".")[2] for line in source(name).splitlines() if line.startswith("from zippkit.")
        }
        assert needed <= set(ORDER[:i]), name


def test_what_cannot_leave_is_named() -> None:
    sync = make(
        {"text": tower(), "speech": tower()},
        [link("speech", "text", every=2, clock="sync"), link("text", "speech", every=2, clock="sync")],
    )
    with pytest.raises(ZippkitError, match=r"links\.speech_to_text: `clock: sync`"):
        refuse_foreign(sync)


def test_the_folder_must_be_free(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ZippkitError, match="choose another --hf"):
        export_model(tmp_path, tmp_path)
