"""Encoders of transformers as towers: the same states as transformers' own forward, however they are packed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

import zippkit
from helpers.compositions import SHARED_DATA, link, make_spec, tower
from helpers.tiny_encoders import MODELS, alone, config, inner, packed, saved, whole
from zippkit.batch.batch import Features, Segment, TowerBatch
from zippkit.batch.masks import self_mask
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.data.audio import read_audio, resample
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.evaluation.certificates import verify
from zippkit.evaluation.certificates.probe import with_zero_inits_randomized
from zippkit.loading import load_spec
from zippkit.model.run_tower import tower_states
from zippkit.model.weights import read_tensors, write_tensors
from zippkit.spec import registry
from zippkit.testing import check_tower
from zippkit_towers.hf_encoder import parity as hf_encoder_parity
from zippkit_towers.hf_encoder import parts as hf_encoder_parts
from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.tower import HfEncoder

pytestmark = pytest.mark.slow

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="session")
def loaded(folders: Path) -> Callable[[str], HfEncoder]:
    """Each model as a tower, with its weights."""

    @cache
    def load(name: str) -> HfEncoder:
        folder = saved(name, folders)
        built = HfEncoder(HfEncoderConfig.from_folder(folder)).eval()
        built.load_weights(folder)
        return built

    return load


@torch.no_grad()
def depths(built: HfEncoder, inputs: TowerBatch) -> list[Tensor]:
    hidden, context = built.start(inputs, self_mask(inputs, causal=False))
    states = [hidden]
    for index in range(built.config.n_layers):
        states.append(built.layer(index, states[-1], context))
    return states


@every_model
def test_the_protocol_is_kept(name: str) -> None:
    assert check_tower(config(name)) == ["cache: not checked, the tower is not causal"]


@every_model
def test_states_are_those_of_transformers_at_every_depth(name: str, loaded: Callable[[str], HfEncoder]) -> None:
    built = loaded(name)
    values = [built.config.example_inputs(size, seed=size) for size in (7, 2, 9, 4)]
    inputs = packed(built.config, values[:2], values[2:], values[:1])
    states = depths(built, inputs)
    for row, segments in enumerate((values[:2], values[2:], values[:1])):
        expected = [torch.cat(parts) for parts in zip(*(alone(name, v) for v in segments), strict=True)]
        for depth, wanted in enumerate(expected):
            found = states[depth][row, : len(wanted)]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5, msg=lambda m, d=depth: f"depth {d}: {m}")


@every_model
def test_nothing_is_random_in_training(name: str, loaded: Callable[[str], HfEncoder]) -> None:
    built = loaded(name)
    inputs = packed(built.config, [built.config.example_inputs(5, seed=0)])
    with torch.no_grad():
        expected = tower_states(built, inputs)
        built.train()
        assert torch.equal(tower_states(built, inputs), expected)
        built.eval()


@every_model
@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("where", [{"every": 1}, {"every": 2, "source": "final"}], ids=["every", "final"])
def test_certificates_hold_on_an_encoder_that_text_reads(name: str, freeze: bool, where: dict[str, Any]) -> None:
    report = verify(zipped(name, freeze=freeze, **where))
    assert report.passed, str(report)


def zipped(name: str, freeze: bool = True, kind: str = "hf_encoder", **where: Any) -> zippkit.Composition:
    encoder = {"kind": kind, "config": {"model": MODELS[name]}, "freeze": freeze}
    return zippkit.compile(
        make_spec({"text": tower(2, 16, 12), "sound": encoder}, [link("sound", "text", **(where or {"every": 1}))])
    )


class AcrossSegments(HfEncoder):
    """Ignores its mask, and is not found out by transformers' own forward."""

    def check(self) -> None:
        pass

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Tensor | None]:
        n_rows, n = inputs.tokens.shape
        return super().start(inputs, torch.ones(n_rows, n, n, dtype=torch.bool), cache)


class HearsPadding(HfEncoder):
    """Takes what stands behind a waveform for a part of it."""

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Tensor | None]:
        features = cast("Features", inputs.features)
        whole = torch.full_like(features.lengths, features.values.shape[1])
        return super().start(replace(inputs, features=replace(features, lengths=whole)), mask, cache)


@pytest.mark.parametrize("name", ["whisper", "hubert"])
def test_a_leak_between_segments_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., Any] = registry._find
    monkeypatch.setattr(registry, "_find", lambda group, kind: AcrossSegments if kind == "leaky" else find(group, kind))
    failed = next(c for c in verify(zipped(name, kind="leaky")).certificates if not c.passed)
    assert failed.name == "C1"
    assert "sound position " in failed.detail
    assert failed.detail.endswith("first at layer 1 of sound")


def test_what_hears_padding_does_not_keep_the_protocol() -> None:
    with pytest.raises(AssertionError, match=r"behind the true length of a segment's inputs changes its states"):
        check_tower(HearsPadding(config("hubert")))


def test_text_between_two_segments_hears_only_the_first() -> None:
    z = zipped("wav2vec2")
    model = with_zero_inits_randomized(z.model)
    first, second, other = (z.graph.towers["sound"].example_inputs(4, seed=seed) for seed in range(3))

    def logits(*sounds: NDArray[np.float32]) -> Tensor:
        row = [Segment("sound", sounds[0]), Segment("text", [1, 2]), Segment("sound", sounds[1]), Segment("text", [3])]
        with torch.no_grad():
            return model(z.collate([row]))["text"][0]

    moved = (logits(first, second) != logits(first, other)).any(dim=-1)
    assert moved.tolist() == [False] * 4 + [True] * 3
    assert (logits(first, second) != logits(other, second)).any(dim=-1).all()


@every_model
def test_a_folder_is_loaded_by_weights_and_by_path(name: str, folders: Path) -> None:
    folder = saved(name, folders)
    spec = {"kind": "hf_encoder", "freeze": True}
    text = {"text": tower(2, 16, 12)}
    by_weights = zippkit.compile(
        make_spec(text | {"sound": spec | {"weights": folder}}, [link("sound", "text", every=1)])
    )
    by_path = zippkit.compile(
        make_spec(text | {"sound": spec | {"config": {"path": str(folder)}}}, [link("sound", "text", every=1)])
    )
    own = by_weights.model.tower("sound").state_dict()
    theirs = inner(name).state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in own.items())
    assert theirs.keys() - own.keys() <= {"post_layernorm.weight", "post_layernorm.bias", "masked_spec_embed"}
    report = verify(by_path)
    assert report.passed, str(report)
    again = by_path.model.tower("sound").state_dict()
    assert own.keys() == again.keys()
    assert all(torch.equal(own[key], again[key]) for key in own)


def test_a_path_is_found_beside_the_spec_and_a_saved_composition_stands_alone(tmp_path: Path) -> None:
    whole("hubert").save_pretrained(tmp_path / "hubert")
    spec = {
        "name": "tiny",
        "towers": {"text": tower(2, 16, 12), "sound": {"kind": "hf_encoder", "config": {"path": "hubert"}}},
        "links": [link("sound", "text", every=1)],
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    z = zippkit.compile(load_spec(tmp_path / "spec.yaml"))
    z.save(tmp_path / "run")
    write_tower(tmp_path / "alone", z.model.tower("sound"), "hf_encoder")
    shutil.rmtree(tmp_path / "hubert")
    again = zippkit.load(tmp_path / "run").model.state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in z.model.state_dict().items())
    sound = {"kind": "hf_encoder", "weights": tmp_path / "alone"}
    alone_again = zippkit.compile(make_spec({"sound": sound})).model.tower("sound")
    assert torch.equal(alone_again.encoder.layer_norm.weight, z.model.tower("sound").encoder.layer_norm.weight)
    assert str(tmp_path) not in (tmp_path / "run" / "spec.yaml").read_text()


def test_older_names_in_checkpoints_are_known(tmp_path: Path) -> None:
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    tensors = {f"wav2vec2.{key}": tensor for key, tensor in inner("wav2vec2").state_dict().items()}
    for old, new in names.items():
        conv = "wav2vec2.encoder.pos_conv_embed.conv."
        tensors[conv + old] = tensors.pop(conv + new)
    write_tensors(tmp_path / "old.safetensors", tensors)
    built = HfEncoder(config("wav2vec2"))
    built.load_weights(tmp_path / "old.safetensors")
    assert torch.equal(built.state_dict()["encoder.layer_norm.weight"], inner("wav2vec2").encoder.layer_norm.weight)
    # Before version 5, transformers kept CLIP's vision tower under a prefix even when it was saved alone.
    clip = {f"vision_model.{key}": tensor for key, tensor in inner("clip").state_dict().items()}
    clip["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    write_tensors(tmp_path / "clip.safetensors", clip)
    HfEncoder(config("clip")).load_weights(tmp_path / "clip.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("hubert.encoder.layer_norm.bias"), "missing encoder.layer_norm.bias"),
        (lambda t: t.update({"hubert.encoder.surprise": torch.ones(1)}), "unknown encoder.surprise"),
        (lambda t: t.update({"surprise": torch.ones(1)}), "unknown surprise"),
        (lambda t: t.update({"hubert.encoder.layer_norm.bias": torch.ones(3)}), r"has shape \[3\], expected \[16\]"),
    ],
)
def test_weights_that_do_not_fit(change: Any, words: str, folders: Path, tmp_path: Path) -> None:
    tensors = read_tensors(saved("hubert", folders))
    change(tensors)
    write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=words):
        HfEncoder(config("hubert")).load_weights(tmp_path / "model.safetensors")


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors"):
        HfEncoder(config("vit")).load_weights(tmp_path)


class SkipsItsNorm(HfEncoder):
    def layer(self, index: int, hidden: Tensor, context: Tensor | None) -> Tensor:
        layers = cast("nn.ModuleList", self.get_submodule(self.parts.layers))
        return cast("Tensor", layers[index](hidden, attention_mask=context))


@pytest.mark.parametrize(("kind", "name"), [(SkipsItsNorm, "whisper"), (AcrossSegments, "vit")])
def test_a_model_that_runs_otherwise_than_transformers_is_refused(kind: Any, name: str, folders: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"a '{name}' model, run layer by layer, differs by \d.* from transf"):
        kind(HfEncoderConfig.from_folder(saved(name, folders))).load_weights(saved(name, folders))


@pytest.mark.parametrize(("name", "part"), [("whisper", "log_mel"), ("hubert", "_norm_over_time")])
def test_inputs_that_are_made_otherwise_are_refused(
    name: str, part: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(hf_encoder_parts, part)
    monkeypatch.setattr(hf_encoder_parts, part, lambda *arguments: 1.01 * right(*arguments))
    with pytest.raises(CheckpointError, match="differs by"):
        HfEncoder(HfEncoderConfig.from_folder(saved(name, folders))).load_weights(saved(name, folders))


def test_a_model_that_cannot_be_run_layer_by_layer_is_refused(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Tensor:
        raise TypeError("other arguments")

    monkeypatch.setattr(hf_encoder_parity, "tower_states", broken)
    with pytest.raises(CheckpointError, match="a 'vit' model cannot be run layer by layer: other arguments"):
        HfEncoder(config("vit")).load_weights(saved("vit", folders))


def test_the_sinusoids_of_whisper_are_not_trained() -> None:
    built = HfEncoder(config("whisper"))
    assert "embed_positions.weight" in built.state_dict()
    assert "embed_positions.weight" not in dict(built.named_parameters())


@every_model
def test_it_can_be_built_without_memory(name: str) -> None:
    with torch.device("meta"):
        built = HfEncoder(config(name))
    assert all(tensor.is_meta for tensor in built.state_dict().values())


def test_text_is_generated_from_sound_and_sound_never() -> None:
    z = zipped("whisper")
    wave = z.graph.towers["sound"].example_inputs(5, seed=0)
    (text,) = zippkit.generate(z, [Segment("sound", wave)], outputs=["text"], max_tokens=3)
    assert text.tower == "text"
    with pytest.raises(ZippkitError, match="'sound' is not causal, so it cannot generate"):
        zippkit.generate(z, [Segment("text", [1])], outputs=["sound"])
    with pytest.raises(ZippkitError, match="states but no logits"):
        z.model.tower("sound").head(torch.zeros(1, 1, 16))
    with pytest.raises(ZippkitError, match="was given tokens"):
        tower_states(z.model.tower("sound"), TowerBatch.alone(torch.zeros(1, 2, dtype=torch.long)))


@pytest.mark.data
@pytest.mark.parametrize("name", ["whisper", "wav2vec2", "hubert, stable"])
@pytest.mark.parametrize("file", ["fsdd/recordings/3_george_0.wav", "kathleen/arctic_a0001_1592748574.flac"])
def test_recorded_speech_is_heard_as_transformers_hears_it(
    name: str, file: str, loaded: Callable[[str], HfEncoder]
) -> None:
    if not (SHARED_DATA / file).exists():
        pytest.skip(f"{file} is not there")
    samples, rate = read_audio(SHARED_DATA / file)
    wave = resample(samples, rate, 16_000)[4000:7000].astype(np.float32)
    built = loaded(name)
    with torch.no_grad():
        states = tower_states(built, packed(built.config, [wave, wave[:1500]]))[0]
    expected = torch.cat([alone(name, part)[-1] for part in (wave, wave[:1500])])
    assert expected.isfinite().all()
    torch.testing.assert_close(states[: len(expected)], expected, rtol=1e-4, atol=2e-5)
