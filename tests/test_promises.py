"""What is promised of a tower holds for every kind, frozen or trained however, wherever a composition comes from.

One table: kinds of towers against ways to freeze. Each cell walks through everything that may happen to a composition
(compiled, loaded, stopped and resumed, started from, grown, exported, scored) and looks at three things after
each step: the bytes of what is frozen, what can be trained, and the logits.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from helpers.compositions import link, randomise
from helpers.interrupts import interrupt, on_step
from helpers.tiny_encoders import MODELS
from helpers.tiny_runs import WORDS
from zippkit import Segment
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.composition import Composition, compile, load
from zippkit.data.dataset import Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.text import train_words
from zippkit.evaluation.certificates import verify
from zippkit.evaluation.evaluate import evaluate
from zippkit.spec import registry
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.recipe import Recipe
from zippkit.training.export import export_tower
from zippkit.training.run_folder import RunFolder
from zippkit.training.starting_point import starting_point
from zippkit.training.trainer import InterruptedRunError, train

pytestmark = pytest.mark.slow

RATE = 800
SIZES = {"dim": 8, "n_layers": 2, "n_heads": 2, "ffn_dim": 16}
FRAME = {"begin": 8, "end": 9}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 8,
    "eos_token_id": 9,
}


@dataclass(frozen=True)
class Kind:
    """A kind of tower, tiny."""

    name: str
    section: dict[str, Any]
    """Of the spec, without weights."""
    adapted: str
    """Pattern of weights that get adapters."""
    save: Callable[[Path, dict[str, Any]], None]
    """Writes random weights as a user has them."""
    hears: bool = False
    """Whether it is fed waveforms."""


def own_folder(folder: Path, section: dict[str, Any]) -> None:
    module = compile(CompositionSpec.model_validate({"name": "x", "towers": {"x": section}})).model.tower("x")
    randomise(module)
    write_tower(folder, module, section["kind"])


def llama_folder(folder: Path, _: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**LLAMA))
    randomise(model)
    model.save_pretrained(folder)


def encoder_folder(folder: Path, section: dict[str, Any]) -> None:
    """The encoder inside a whole model, as on the hub."""
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(transformers.AutoConfig.for_model(**section["config"]["model"]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)


ATTENTION = "layers.*.self_attn.?_proj.weight"
DECODER = {"kind": "decoder", "config": {"vocab_size": 10, **SIZES}, "frame": FRAME}
IMAGES = {"kind": "image_units", "config": {**SIZES, "side": 2, "levels": 8}}
WAVES = MODELS["wav2vec2"] | {"feat_extract_norm": "layer", "hidden_size": 8, "intermediate_size": 16}
KINDS = {
    kind.name: kind
    for kind in (
        Kind("decoder", DECODER, ATTENTION, own_folder),
        Kind("image_units", IMAGES, ATTENTION, own_folder),
        Kind("hf_causal_lm", {"kind": "hf_causal_lm"}, f"model.{ATTENTION}", llama_folder),
        Kind(
            "hf_encoder",
            {"kind": "hf_encoder", "config": {"model": WAVES | {"num_hidden_layers": 2}, "sample_rate": RATE}},
            "encoder.layers.*.attention.?_proj.weight",
            encoder_folder,
            hears=True,
        ),
        Kind(
            "imu",
            {"kind": "imu", "config": {"vocab_size": 10, "dim": 8, "n_layers": 2}, "frame": FRAME},
            "layers.*.weight",
            own_folder,
        ),
    )
}
WAYS = ("frozen", "rules", "lora", "trained")


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documentation's own tower, as if its package were installed."""
    if "imu_tower" not in sys.modules:
        found = importlib.util.spec_from_file_location("imu_tower", Path(__file__).parent / "plugin" / "imu_tower.py")
        assert found is not None and found.loader is not None
        sys.modules["imu_tower"] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules["imu_tower"])
    find = registry._find
    imu = sys.modules["imu_tower"].Imu
    monkeypatch.setattr(registry, "_find", lambda group, name: imu if name == "imu" else find(group, name))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Words beside four units, and beside waveforms."""
    root = tmp_path_factory.mktemp("data")
    numbers = np.random.default_rng(0)

    def example(i: int, hears: bool) -> Example:
        heard: Any = numbers.uniform(-1, 1, 40).astype(np.float32) if hears else numbers.integers(0, 8, 4)
        return Example(f"{i}", "nobody", 0.0, {"text": WORDS[i % 4], "x": heard})

    for hears in (False, True):
        splits = {"train": [example(i, hears) for i in range(6)], "test": [example(i, hears) for i in range(2)]}
        waves = {"x": RATE} if hears else {}
        write_dataset(root / str(hears), splits, {"text": train_words(WORDS)}, waveforms=waves)
    return {hears: root / str(hears) for hears in (False, True)}


class Case:
    """One cell of the table."""

    def __init__(self, kind: Kind, way: str, root: Path, data: Path) -> None:
        self.kind, self.way, self.root, self.data = kind, way, root, data
        self.source = root / "source"
        kind.save(self.source, kind.section)
        plain = compile(self.spec(freeze=False))
        self.first = {name: tensor.clone() for name, tensor in plain.model.tower("x").state_dict().items()}
        self.parameters = [name for name, _ in plain.model.tower("x").named_parameters()]
        """As they come from the source."""

    @property
    def frozen(self) -> set[str]:
        """The tower's parameters that are to be frozen, said without asking zippkit."""
        some = {"frozen": self.parameters, "lora": self.parameters, "rules": self.parameters[::2]}
        return set(some.get(self.way, ()))

    def freezing(self) -> dict[str, Any]:
        if self.way == "lora":
            return {"freeze": True, "lora": {"rank": 2, "pattern": self.kind.adapted}}
        if self.way == "rules":
            return {"freeze": {name: "freeze" if name in self.frozen else "train" for name in self.parameters}}
        return {"freeze": self.way == "frozen"}

    def spec(self, grown: bool = False, **freezing: Any) -> CompositionSpec:
        tower = {**self.kind.section, "weights": str(self.source), **(freezing or self.freezing())}
        text = {"kind": "decoder", "config": {"vocab_size": 7, **SIZES}, "frame": {"begin": 1, "end": 2}}
        towers = {"x": tower, "text": text} | ({"more": text} if grown else {})
        links = [link("x", "text", every=1)] + ([link("text", "more", every=1)] if grown else [])
        return CompositionSpec.model_validate({"name": "promises", "towers": towers, "links": links})

    def recipe(self, **more: Any) -> Recipe:
        phase = {"steps": 3, "batch_size": 2, "save_every": 1, "learning_rate": 1e-2, "tasks": ["x -> text"]}
        how = {"split": "test", "max_tokens": 2, "batch_size": 2}
        plain = {"name": "promises", "spec": self.spec(), "data": self.data, "train": phase, "evaluate": how}
        return Recipe.model_validate({**plain, **more})

    @torch.no_grad()
    def logits(self, made: Composition) -> Tensor:
        heard = np.linspace(-1, 1, 40, dtype=np.float32) if self.kind.hears else [1, 2, 3, 4]
        return made.model.eval()(made.collate([[Segment("x", heard), Segment("text", [3, 4, 5])]]))["text"]

    def kept(self, made: Composition) -> Composition:
        """What must hold of a composition, wherever it comes from."""
        tower = made.model.tower("x")
        assert {name for name, p in tower.named_parameters() if not p.requires_grad} == self.frozen
        assert [name for name, _ in tower.named_parameters()] == self.parameters
        whole = self.way in ("frozen", "lora")
        for name, tensor in tower.state_dict().items():
            if whole or name in self.frozen:
                assert torch.equal(tensor, self.first[name]), f"{name} is not its source's"
        assert ("x" in made.model.adapters) == (self.way == "lora")
        assert all(p.requires_grad for p in made.model.adapters.parameters())
        return made


def digests(folder: Path) -> list[str]:
    return sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_promised_is_kept(
    kind: str, way: str, tmp_path: Path, data: dict[bool, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(KINDS[kind], way, tmp_path, data[KINDS[kind].hears])

    # Compiled.
    made = case.kept(compile(case.spec()))

    # Saved and loaded, with every link and adapter awake.
    randomise(made.model.links)
    randomise(made.model.adapters, 1)
    made.save(tmp_path / "saved")
    assert torch.equal(case.logits(case.kept(load(tmp_path / "saved"))), case.logits(made))

    # Stopped in the middle and resumed: the run that never stopped.
    train(case.recipe(), tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        on_step(patch, 1, interrupt)
        train(case.recipe(), tmp_path / "run")
    train(case.recipe(), tmp_path / "run")
    run = case.kept(load(tmp_path / "run"))
    trained = case.logits(run)
    assert torch.equal(trained, case.logits(load(tmp_path / "whole")))
    state = run.model.tower("x").state_dict()
    moved = {name for name, tensor in state.items() if not torch.equal(tensor, case.first[name])}
    assert bool(moved) == (way in ("rules", "trained")), "what is trained has moved"

    # Started from.
    second = case.recipe(start_from=tmp_path / "run")
    assert torch.equal(case.logits(case.kept(starting_point(second, RunFolder(tmp_path / "second")))), trained)
    train(second, tmp_path / "second")
    done = case.kept(load(tmp_path / "second"))

    # Grown.
    grown = case.kept(load(tmp_path / "second", spec=case.spec(grown=True)))
    assert torch.equal(case.logits(grown), case.logits(done))

    # Exported.
    export_tower(tmp_path / "second", "x", tmp_path / "out")
    again = compile(case.spec(freeze=False).model_copy(deep=True))
    again.model.tower("x").load_weights(tmp_path / "out")
    state = done.model.tower("x").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.tower("x").state_dict().items())
    if way in ("frozen", "lora"):
        assert digests(tmp_path / "out") == digests(case.source)

    # Scored.
    before = digests(tmp_path / "second")
    scores = evaluate(tmp_path / "second")
    assert digests(tmp_path / "second") == before
    told = {row.tower: row.frozen for row in scores.retention}
    assert case.kind.hears or told["x"] == (way in ("frozen", "lora"))
    assert torch.equal(case.logits(case.kept(load(tmp_path / "second"))), case.logits(done))
    assert [c for c in verify(grown, only=["C3", "C8"]).certificates if not c.passed] == []


def test_a_run_that_was_killed_resumed_grown_and_exported_is_proven(tmp_path: Path, data: dict[bool, Path]) -> None:
    """What `zippkit verify` is for: a frozen tower of Hugging Face, beside which much has happened, is its source's."""
    case = Case(KINDS["hf_causal_lm"], "frozen", tmp_path, data[False])
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            on_step(patch, 2, lambda model: os.kill(os.getpid(), signal.SIGKILL))
            train(case.recipe(), tmp_path / "first")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert RunFolder(tmp_path / "first").checkpoints("train"), "killed in the middle"
    train(case.recipe(), tmp_path / "first")
    grown = case.spec(grown=True)
    train(case.recipe(spec=grown, start_from=tmp_path / "first"), tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    export_tower(tmp_path / "second", "x", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(case.source) != []
    report = verify(load(tmp_path / "second"))
    assert report.passed, str(report)
    told = {certificate.name: certificate.detail for certificate in report.certificates}
    assert "x byte for byte as in the source" in told["C8"]
    moved = load(tmp_path / "second")
    moved.model.tower("x").requires_grad_(True)
    (c3,) = verify(moved, only=["C3"]).certificates
    assert "towers.x.model.embed_tokens.weight is trainable although the spec freezes it" in c3.detail
