"""Vocoders: closer to the recording than averages are, the same every time, kept beside the tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.sounds import SMALL, tone
from zippkit.data.audio import read_audio
from zippkit.data.dataset import Dataset, load_vocoder
from zippkit.data.prepare import add_vocoder, prepare
from zippkit.data.readers import read
from zippkit.data.speech.train_vocoder import TrainVocoder, train_vocoder
from zippkit.data.speech.vocoder import UnitVocoder
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError
from zippkit.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

QUICK = TrainVocoder(steps=60, batch=4, seconds=0.5, dropout=0.0)


@pytest.fixture(scope="module")
def vocoder(units: UnitTokenizer) -> UnitVocoder:
    return train_vocoder(units, (tone(1.0, seed) for seed in range(8)), QUICK)


def test_a_vocoder_is_closer_to_the_recording_than_averages_are(units: UnitTokenizer, vocoder: UnitVocoder) -> None:
    averages, written = [], []
    for seed in range(8):
        wave = tone(1.0, seed)
        ids = units.encode(wave, 8000)
        target = vocoder.target(wave, len(ids))
        assert vocoder.mel(ids).shape == target.shape == (4 * len(ids), 80)
        averages.append(np.abs(vocoder.averages[ids].reshape(-1, 80).numpy() - target).mean())
        written.append(np.abs(vocoder.mel(ids) - target).mean())
    assert np.mean(written) < 0.9 * np.mean(averages)


def test_every_band_varies_as_much_as_in_the_recordings(units: UnitTokenizer, vocoder: UnitVocoder) -> None:
    ids = [units.encode(tone(1.0, seed), 8000) for seed in range(8)]
    theirs = np.concatenate([vocoder.target(tone(1.0, seed), len(ids[seed])) for seed in range(8)])
    ours = np.concatenate([vocoder.mel(one) for one in ids])
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=1e-3)
    wanted = (vocoder.gain > 1) & (vocoder.gain < 1.5)
    assert wanted.any()
    np.testing.assert_allclose(ours.std(axis=0)[wanted], theirs.std(axis=0)[wanted], rtol=1e-3)


def test_an_average_is_of_the_frames_where_the_unit_was_heard(units: UnitTokenizer, vocoder: UnitVocoder) -> None:
    rows, unit = [], units.encode(tone(1.0, 0), 8000)[0]
    for seed in range(8):
        wave = tone(1.0, seed)
        ids = units.encode(wave, 8000)
        rows += [*vocoder.target(wave, len(ids)).reshape(len(ids), -1)[ids == unit]]
    np.testing.assert_allclose(vocoder.averages[unit].numpy(), np.mean(rows, axis=0), atol=1e-4)


def test_training_is_repeatable_and_leaves_the_global_generator_alone(units: UnitTokenizer) -> None:
    short = TrainVocoder(steps=2, batch=2, seconds=0.2)
    told: list[tuple[int, int, str]] = []
    torch.manual_seed(5)
    first = train_vocoder(units, [tone(1.0, 1)], short, seed=3, progress=lambda *step: told.append(step))
    after = torch.rand(1)
    torch.manual_seed(6)
    again, other = (train_vocoder(units, [tone(1.0, 1)], short, seed=seed) for seed in (3, 4))
    torch.manual_seed(5)
    assert torch.rand(1) == after
    mels = [trained.mel([1, 2, 3]) for trained in (first, again, other)]
    assert np.array_equal(mels[0], mels[1]) and not np.array_equal(mels[0], mels[2])
    assert [step[:2] for step in told] == [(1, 0), (1, 2), (2, 2)]


def test_it_is_saved_whole_and_belongs_to_its_tokenizer(
    units: UnitTokenizer, vocoder: UnitVocoder, tmp_path: Path
) -> None:
    vocoder.save(tmp_path / "v.safetensors")
    loaded = load_vocoder(tmp_path / "v.safetensors")
    np.testing.assert_array_equal(loaded.to_sound([1, 2, 3]), vocoder.to_sound([1, 2, 3]))
    other = replace(units, mean=units.mean + 1)
    with pytest.raises(DataError, match=r"the vocoder is for the tokenizer \w+, expected \w+; train it"):
        other.with_vocoder(loaded)
    units.save(tmp_path / "u.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "v.safetensors").read_bytes()[:-100])
    for name, said in (("u", "but not a vocoder's"), ("cut", "not a readable vocoder"), ("none", "no such file")):
        with pytest.raises(DataError, match=said):
            load_vocoder(tmp_path / f"{name}.safetensors")


def test_units_sound_through_it_and_mean_what_they_did(units: UnitTokenizer, vocoder: UnitVocoder) -> None:
    sounding, wave = units.with_vocoder(vocoder), tone(1.0, 1)
    assert sounding.fingerprint == units.fingerprint
    ids = sounding.encode(wave, 8000)
    np.testing.assert_array_equal(ids, units.encode(wave, 8000))
    framed = [units.begin, *ids, units.end]
    np.testing.assert_array_equal(sounding.to_sound(framed, seed=1), vocoder.to_sound(ids, seed=1))
    assert not np.array_equal(sounding.to_sound(ids)[:500], units.to_sound(ids)[:500])
    assert len(sounding.to_sound([])) == 0
    with pytest.raises(DataError, match="unit at index 0 is 18, expected 0 to 15"):
        sounding.to_sound([18])


def test_a_prepared_vocoder_is_kept_with_the_data_and_the_run(
    librispeech_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "zippkit.data.speech.train_vocoder.TrainVocoder", lambda: TrainVocoder.model_construct(**QUICK.model_dump())
    )
    plain = prepare("librispeech", librispeech_root, tmp_path / "plain", units=SMALL)
    dataset = prepare("librispeech", librispeech_root, tmp_path / "d", units=SMALL, vocoder=True)
    speech = Dataset.open(dataset.path).tokenizer("speech")
    assert isinstance(speech, UnitTokenizer) and isinstance(speech.vocoder, UnitVocoder)
    assert dataset.fingerprints == plain.fingerprints
    assert "tokenizers/speech.vocoder.safetensors" in dataset.manifest.files
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.keep_tokenizers({"data": dataset})
    kept = run.tokenizers()["speech"]
    assert isinstance(kept, UnitTokenizer)
    np.testing.assert_array_equal(kept.to_sound([1, 2]), speech.to_sound([1, 2]))
    trained = UnitTokenizer.load(plain.path / "tokenizers" / "speech.safetensors")
    waves = [read_audio(r.files[0])[0] for r in read("librispeech", librispeech_root) if r.split == "train"]
    again = add_vocoder(trained, waves)
    np.testing.assert_array_equal(again.to_sound([1, 2]), speech.to_sound([1, 2]))
    with pytest.raises(DataError, match="no recordings to train a vocoder on"):
        add_vocoder(trained, [])
    (dataset.path / "tokenizers" / "speech.vocoder.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match=r"speech\.vocoder\.safetensors has 1 bytes"):
        Dataset.open(dataset.path)
