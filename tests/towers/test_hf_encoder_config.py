"""What an encoder's config tells without torch: families, shapes, how many states an input makes, and what is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import yaml

from helpers.compositions import tower
from helpers.tiny_encoders import config, inner, saved
from zippkit.batch.batch import Segment
from zippkit.batch.collate import collate
from zippkit.errors import DataError, SpecError
from zippkit.loading import load_spec
from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.tower import HfEncoder

FRAME = {"begin": 0, "end": 1}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.mark.parametrize("n_samples", [11, 16, 17, 22, 23, 24, 100, 101, 320])
def test_states_are_counted_as_transformers_counts_them(n_samples: int) -> None:
    c = config("wav2vec2")
    wave = np.zeros(n_samples, np.float32)
    assert c.n_states(wave) == int(inner("wav2vec2")._get_feat_extract_output_lengths(n_samples))


def test_states_of_a_window_and_of_an_image() -> None:
    assert config("whisper").n_states(np.zeros(1, np.float32)) == 10
    assert config("whisper").n_states(np.zeros(3200, np.float32)) == 10
    assert config("vit").n_states(np.zeros((1, 8, 8), np.float32)) == 5


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("whisper", np.zeros(3201), "got 3201 samples; expected 1 to 3200"),
        ("whisper", np.zeros(0), "got 0 samples"),
        ("hubert", np.zeros(10), "got 10 samples; expected at least 11"),
        ("hubert", np.zeros((2, 100)), r"shape \(2, 100\); expected a waveform \(samples,\)"),
        ("hubert", np.full(100, 20_000), "got samples up to 20000; expected -1 to 1"),
        ("hubert", np.full(100, np.nan), "not finite"),
        ("vit", np.zeros((3, 8, 8)), r"shape \(3, 8, 8\); expected \(channels, height, width\) = \(1, 8, 8\)"),
        ("hubert", [[1.0], [2.0, 3.0]], "inhomogeneous"),
    ],
)
def test_inputs_that_an_encoder_cannot_take(name: str, values: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"example 0: segment 0 \(it\): .*{words}"):
        collate([[Segment("it", values)]], {"it": config(name)})


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ({"config": {}}, "config: expected `path: FOLDER_OR_HUB_ID` or `model: {model_type: ...}`"),
        ({"config": {"path": "no/folder"}}, "'no/folder' is no folder, nor to be had from the hub"),
        ({"config": {"model": {"model_type": "wav2vec"}}}, "knows no 'wav2vec' model; did you mean 'wav2vec2'?"),
        ({"config": {"model": {"model_type": ["vit"]}}}, "a ['vit'] model"),
        ({"config": {"model": {}}}, "a None model"),
        ({"config": {"model": 3}}, "model: expected a mapping, got 3"),
        ({"config": {"model": {"model_type": "vit", "hidden_size": "x"}}}, "hidden_size is 'x'; expected a whole"),
        ({"config": {"model": {"model_type": "vit", "image_size": 2}}}, "is smaller than patch_size"),
        ({"config": {"model": {"model_type": "hubert", "conv_stride": [2**40] + [2] * 6}}}, "more than 268435456"),
        ({"config": {"model": {"model_type": "vit", "num_channels": 2**40}}}, "has more than 268435456 values"),
        ({"config": {"model": {"model_type": "hubert", "conv_dim": [3]}}}, "conv_dim has 1 entries"),
        ({"config": {"model": {"model_type": "wav2vec2", "add_adapter": True}}}, "add_adapter is True; kind"),
        ({"config": {"model": {"model_type": "hubert", "conv_pos_batch_norm": True}}}, "conv_pos_batch_norm is True"),
        ({"config": {"model": {"model_type": "vit"}, "dim": 3}}, "dim is 3, but the model's is 768; leave it out"),
        ({"config": {"model": {"model_type": "vit"}, "vocab_size": 3}}, "has no vocabulary"),
        ({"config": {"model": {"model_type": "vit"}, "normalize": True}}, "takes its inputs as they are"),
        ({"config": {"model": {"model_type": "vit"}, "sample_rate": 16000}}, "is fed pixels"),
        ({"config": {"model": {"model_type": "whisper"}, "sample_rate": 8000}}, "hears only 16000"),
        ({"config": {"model": {"model_type": "vit"}, "modle": {}}}, "unknown key 'modle'; did you mean 'model'?"),
        ({"config": {"model": {"model_type": "vit"}}, "frame": FRAME}, "reads no tokens, so it has no begin"),
        ({"config": {"model": {"model_type": "vit"}}, "extend_vocabulary": {"more": 4}}, "no vocabulary that could"),
    ],
)  # fmt: skip
def test_specs_that_are_wrong(encoder: dict[str, Any], words: str, tmp_path: Path) -> None:
    spec = {"name": "tiny", "towers": {"text": tower(2, 16, 12), "sound": {"kind": "hf_encoder"} | encoder}}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(SpecError) as told:
        load_spec(tmp_path / "spec.yaml")
    assert words in str(told.value)
    assert len(told.value.problems) == 1


def test_a_feature_extractor_is_heeded(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(saved("hubert", folders), tmp_path / "plain")
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False, sampling_rate=8000).save_pretrained(tmp_path / "plain")
    told = HfEncoderConfig.from_folder(tmp_path / "plain")
    assert (told.normalize, told.sample_rate) == (False, 8000)
    HfEncoder(told).load_weights(tmp_path / "plain")
    shutil.copytree(saved("whisper", folders), tmp_path / "other")
    transformers.WhisperFeatureExtractor(feature_size=12, hop_length=80).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="hop_length is 80; kind `hf_encoder` runs only 160"):
        HfEncoderConfig.from_folder(tmp_path / "other")


def test_checking_a_spec_imports_neither_torch_nor_transformers(folders: Path, tmp_path: Path) -> None:
    path = str(saved("clip", folders))
    spec = {"name": "tiny", "towers": {"image": {"kind": "hf_encoder", "config": {"path": path}}}}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    loaded = "bool({'torch', 'transformers'} & set(sys.modules))"
    code = f"import sys, zippkit; zippkit.load_spec({str(tmp_path / 'spec.yaml')!r}); sys.exit({loaded})"
    subprocess.run([sys.executable, "-c", code], check=True)
