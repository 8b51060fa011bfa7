"""Kinds of speech tokenizers: found by name, the same after saving, and what they say is what their models compute."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from helpers.sounds import tone
from helpers.tiny_speech_models import saved
from zippkit import cli
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.prepare import prepare
from zippkit.data.speech.codec import CodecConfig, CodecTokenizer
from zippkit.data.speech.ssl_units import SslUnitConfig, SslUnits
from zippkit.data.speech_tokenizer import SpeechTokenizer, tokenizer_class
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError, ZippkitError
from zippkit.spec.registry import UnknownKindError
from zippkit.training.run_folder import RunFolder

Models = Callable[[str], Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    return lambda name: root / name if (root / name).exists() else saved(name, root / name)


def sounds(rate: int, count: int = 4) -> list[Any]:
    return [tone(0.5, seed, rate) for seed in range(count)]


def ssl(folder: Path, **more: Any) -> SslUnits:
    config = SslUnitConfig(**{"model": str(folder), "layer": 2, "n_units": 8} | more)
    return SslUnits.train(sounds(16_000), config)


def codec(folder: Path, n_codebooks: int = 2) -> CodecTokenizer:
    return CodecTokenizer.train([], CodecConfig(model=str(folder), n_codebooks=n_codebooks))


def test_kinds_are_found_by_name() -> None:
    assert [tokenizer_class(kind) for kind in ("mel_units", "ssl_units", "codec")] == [
        UnitTokenizer,
        SslUnits,
        CodecTokenizer,
    ]
    with pytest.raises(UnknownKindError, match=r"no tokenizer of kind 'mel_unit'.*did you mean 'mel_units'"):
        tokenizer_class("mel_unit")


@pytest.mark.parametrize("name", ["hubert", "wav2vec2", "wav2vec2-bert"])
def test_ssl_units_are_the_nearest_centroids_of_the_layer(name: str, models: Models, tmp_path: Path) -> None:
    units, wave = ssl(models(name)), tone(0.5, 9, 16_000)
    cls = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model", "wav2vec2-bert": "Wav2Vec2BertModel"}[name]
    model = getattr(transformers, cls).from_pretrained(models(name)).eval()
    bert = name == "wav2vec2-bert"
    extract: Any = transformers.SeamlessM4TFeatureExtractor() if bert else transformers.Wav2Vec2FeatureExtractor()
    with torch.no_grad():
        inputs = extract(wave, sampling_rate=16_000, return_tensors="pt")
        states = model(**inputs, output_hidden_states=True).hidden_states[2][0].numpy()
    distances = np.square(states[:, None] - units.codebook[None].astype(np.float32)).sum(-1)
    ids = units.encode(wave, 16_000)
    np.testing.assert_array_equal(ids, distances.argmin(-1))
    assert len(units.encode(wave[:1], 16_000)) >= 1
    assert units.units_per_second == 50 and abs(len(ids) - 25) <= 1 and len(set(ids.tolist())) > 1
    assert (units.begin, units.end, units.vocab_size) == (8, 9, 10)
    units.save(tmp_path / "u.safetensors")
    loaded = SslUnits.load(tmp_path / "u.safetensors")
    assert loaded.fingerprint == units.fingerprint
    np.testing.assert_array_equal(loaded.encode(wave, 16_000), ids)


def test_ssl_units_need_their_own_model_and_say_what_is_wrong(models: Models, tmp_path: Path) -> None:
    shutil.copytree(models("hubert"), tmp_path / "moved")
    units = ssl(tmp_path / "moved")
    assert units.fingerprint == ssl(models("hubert")).fingerprint != ssl(models("hubert"), layer=1).fingerprint
    units.save(tmp_path / "u.safetensors")
    with (tmp_path / "moved" / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"has SHA-256 \w+, expected \w+: another model"):
        SslUnits.load(tmp_path / "u.safetensors").encode(tone(0.5, 1, 16_000), 16_000)
    with pytest.raises(DataError, match="no way back to sound without a vocoder; prepare the data with --vocoder"):
        units.to_sound([1])
    with pytest.raises(DataError, match="layer is 4, expected 0 to 3"):
        ssl(models("hubert"), layer=4)
    with pytest.raises(DataError, match=r"holds a model of type 'mimi'; valid: hubert, wav2vec2"):
        ssl(models("mimi"))
    with pytest.raises(DataError, match="ssl_units: model: 'nowhere' is no folder"):
        SslUnits.rate_for(SslUnitConfig(model="nowhere"))


@pytest.mark.parametrize("name", ["encodec", "mimi"])
def test_a_codec_is_flattened_frame_by_frame_and_played_by_its_own_decoder(
    name: str, models: Models, tmp_path: Path
) -> None:
    tokens, wave = codec(models(name)), tone(0.5, 3)
    model = getattr(transformers, {"encodec": "EncodecModel", "mimi": "MimiModel"}[name]).from_pretrained(models(name))
    x = torch.from_numpy(wave)[None, None]
    with torch.no_grad():
        codes = model.eval().encode(x, **({"bandwidth": 3.2} if name == "encodec" else {})).audio_codes
        codes = (codes[0] if name == "encodec" else codes)[:, :2]
        sound = model.decode(codes[None], [None]) if name == "encodec" else model.decode(codes)
    ids = tokens.encode(wave, 8000)
    np.testing.assert_array_equal(ids, [c for frame in codes[0].T for c in (int(frame[0]), 16 + int(frame[1]))])
    assert len(set(ids.tolist())) > 2
    assert (tokens.begin, tokens.vocab_size) == (32, 34) and tokens.units_per_second == 400
    np.testing.assert_allclose(tokens.to_sound(ids), sound.audio_values[0, 0].numpy(), atol=1e-5)
    tokens.save(tmp_path / "t.json")
    loaded = CodecTokenizer.load(tmp_path / "t.json")
    assert loaded.fingerprint == tokens.fingerprint != codec(models(name), 1).fingerprint
    np.testing.assert_array_equal(loaded.encode(wave, 8000), ids)


def test_what_a_model_generates_out_of_order_still_sounds(models: Models) -> None:
    tokens = codec(models("encodec"))
    wanted = tokens.to_sound([3, 17, 4, 18])
    np.testing.assert_array_equal(tokens.to_sound([tokens.begin, 20, 3, 5, 17, 4, 18, 6, tokens.end]), wanted)
    assert len(tokens.to_sound([3])) == 0
    with pytest.raises(DataError, match="unit at index 1 is 34, expected 0 to 31"):
        tokens.to_sound([3, 34])
    with pytest.raises(DataError, match="n_codebooks is 9, expected 1 to"):
        codec(models("encodec"), 9)


@pytest.mark.parametrize("kind", ["ssl_units", "codec"])
def test_prepare_takes_a_kind_and_the_dataset_and_the_run_keep_it(
    kind: str, models: Models, librispeech_root: Path, tmp_path: Path
) -> None:
    name = "hubert" if kind == "ssl_units" else "encodec"
    config: Any = SslUnitConfig(model=str(models(name)), n_units=8, layer=1)
    if kind == "codec":
        config = CodecConfig(model=str(models(name)), n_codebooks=1)
    dataset = prepare("librispeech", librispeech_root, tmp_path / "d", tokenizer=kind, units=config, resample=True)
    tokenizer = Dataset.open(dataset.path).tokenizer("speech")
    assert isinstance(tokenizer, tokenizer_class(kind)) and dataset.manifest.modalities["speech"].tokenizer == kind
    assert all(max(example.items["speech"]) < tokenizer.begin for example in dataset.split("train"))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.keep_tokenizers({"data": dataset})
    assert run.tokenizers()["speech"].fingerprint == tokenizer.fingerprint


def test_prepare_refuses_settings_of_another_kind(librispeech_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tokenizer ssl_units: required key 'model' is missing"):
        prepare("librispeech", librispeech_root, tmp_path / "d", tokenizer="ssl_units")
    with pytest.raises(DataError, match="tokenizer mel_units takes a UnitConfig, got a CodecConfig"):
        prepare("librispeech", librispeech_root, tmp_path / "d", units=CodecConfig(model="x"))
    with pytest.raises(ZippkitError, match=r"no tokenizer of kind 'codek'.*did you mean 'codec'"):
        prepare("librispeech", librispeech_root, tmp_path / "d", tokenizer="codek")
    assert not (tmp_path / "d").exists()


def test_a_folder_from_before_there_were_kinds_opens(units: UnitTokenizer, tmp_path: Path) -> None:
    example = Example("a", "s", 1.0, {"speech": np.array([1, 2])})
    path = write_dataset(tmp_path / "d", {"train": [example]}, {"speech": units}).path
    manifest = (path / "manifest.json").read_text()
    for key in ("tokenizer", "vocoder"):
        assert f'      "{key}": null,\n' in manifest
        manifest = manifest.replace(f'      "{key}": null,\n', "")
    (path / "manifest.json").write_text(manifest)
    assert isinstance(Dataset.open(path).tokenizer("speech"), UnitTokenizer)


THIRD_PARTY = """
from pathlib import Path
import hashlib
import numpy as np
from zippkit.spec.kinds import Strict
from zippkit.data.speech_tokenizer import SpeechTokenizer

class Loudness(SpeechTokenizer):
    class Config(Strict):
        n_levels: int = 4
    kind = "loudness"
    suffix = ".txt"
    begin = property(lambda self: self.n_levels)
    fingerprint = property(lambda self: hashlib.sha256(str(self.n_levels).encode()).hexdigest())
    sample_rate = property(lambda self: 8000)
    units_per_second = property(lambda self: 10.0)
    def __init__(self, n_levels):
        self.n_levels = n_levels
    @classmethod
    def rate_for(cls, config):
        return 8000
    @classmethod
    def train(cls, waves, config=None, seed=0, progress=None):
        return cls(config.n_levels)
    def encode(self, wave, rate):
        self.check_rate(wave, rate)
        return np.array([int(np.abs(piece).mean() * self.n_levels) for piece in np.array_split(wave, 5)])
    def to_sound(self, ids, seed=0):
        return np.repeat(self.units_of(ids) / self.n_levels, 800).astype(np.float32)
    def save(self, path):
        Path(path).write_text(str(self.n_levels))
    @classmethod
    def load(cls, path):
        return cls(int(Path(path).read_text()))
"""


def test_a_third_partys_kind_works_throughout(
    librispeech_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "site" / "loudness-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loudness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[zippkit.tokenizers]\nloudness = loudness_units:Loudness\n")
    (tmp_path / "site" / "loudness_units.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["zippkit", *arguments])
        try:
            cli.main()
        except SystemExit as done:
            return int(done.code or 0)
        return 0

    words = ["prepare", "librispeech", str(librispeech_root), "-o", str(tmp_path / "d"), "--tokenizer", "loudness"]
    assert call(*words, "units.n_levls=6") == 2
    assert "unknown key 'n_levls'; did you mean 'n_levels'?" in capsys.readouterr().err
    assert call(*words, "units.n_levels=6") == 0
    tokenizer = Dataset.open(tmp_path / "d").tokenizer("speech")
    assert isinstance(tokenizer, SpeechTokenizer)
    assert (type(tokenizer).__name__, tokenizer.begin, tokenizer.vocab_size) == ("Loudness", 6, 8)
    assert len(tokenizer.to_sound([1, 2])) == 1600
    assert call(*words, "--overwrite", "--vocoder") == 2
    assert "loudness tokenizers have their own way back to sound, and take no vocoder" in capsys.readouterr().err
