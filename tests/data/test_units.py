"""Unit tokenizers: nearest centroids, overlap-add, and files that decide ids to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from helpers.sounds import SMALL, tone
from zippkit.data.kmeans import Reservoir, cluster, nearest
from zippkit.data.units import UnitConfig, UnitTokenizer
from zippkit.errors import DataError


def test_frame_ids_follow_the_units(units: UnitTokenizer) -> None:
    assert (units.begin, units.end, units.vocab_size) == (16, 17, 18)


@pytest.mark.parametrize(("window", "stride", "rate"), [(6, 4, 25), (2, 2, 50), (4, 4, 25)])
def test_units_per_second(window: int, stride: int, rate: float) -> None:
    config = SMALL.model_copy(update={"window": window, "stride": stride})
    units = UnitTokenizer.train((tone(1.0, seed) for seed in range(4)), config)
    assert config.units_per_second == rate
    assert abs(len(units.encode(tone(2.0, 9), 8000)) - 2 * rate) <= 1


def test_encode_takes_the_nearest_centroid(units: UnitTokenizer) -> None:
    windows = units._windows(units._mel(tone(0.7, 3)))
    by_hand = [np.square(window - units.codebook.astype(np.float32)).sum(axis=1).argmin() for window in windows]
    assert units.encode(tone(0.7, 3), 8000).tolist() == by_hand


def test_windows_overlap_and_cover_every_frame(units: UnitTokenizer) -> None:
    mel = np.arange(13 * 20, dtype=np.float32).reshape(13, 20)
    windows = units._windows(mel).reshape(-1, 6, 20)
    assert [window[0, 0] // 20 for window in windows] == [0, 4, 8]
    np.testing.assert_array_equal(windows[1], mel[4:10])
    np.testing.assert_array_equal(windows[2][-1], mel[-1])  # the last frame, repeated


def test_decoding_averages_where_windows_overlap(units: UnitTokenizer) -> None:
    first, second = units.codebook[[3, 5]].astype(np.float32).reshape(2, 6, 20)
    mel = units.decode_mel([units.begin, 3, 5, units.end])
    assert mel.shape == (10, 20)
    np.testing.assert_allclose(mel[:4], first[:4])
    np.testing.assert_allclose(mel[4:6], (first[4:] + second[:2]) / 2, rtol=1e-6)
    np.testing.assert_allclose(mel[6:], second[2:])


def test_decoded_units_resemble_what_was_said(units: UnitTokenizer) -> None:
    wave = tone(1.0, 2)
    mel = units._mel(wave)
    error = np.square(units.decode_mel(units.encode(wave, 8000))[: len(mel)] - mel).mean()
    assert error < 0.5 * np.square(mel - mel.mean(axis=0)).mean()


@given(st.lists(st.integers(0, 17), max_size=20))
@settings(deadline=None, max_examples=20)
def test_any_units_can_be_decoded(units: UnitTokenizer, ids: list[int]) -> None:
    n_units = sum(i < 16 for i in ids)
    assert units.decode_mel(ids).shape == ((n_units - 1) * 4 + 6 if n_units else 0, 20)


@pytest.mark.parametrize("wrong", [-1, 18])
def test_ids_outside_the_codebook_are_refused(units: UnitTokenizer, wrong: int) -> None:
    with pytest.raises(DataError, match=f"unit at index 1 is {wrong}, expected 0 to 15"):
        units.decode_mel([0, wrong])


def test_sound_is_the_same_every_time_and_as_long_as_its_frames(units: UnitTokenizer) -> None:
    ids = units.encode(tone(0.5, 1), 8000)
    wave = units.to_sound(ids)
    assert wave.dtype == np.float32 and len(wave) == ((len(ids) - 1) * 4 + 5) * 80
    np.testing.assert_array_equal(wave, units.to_sound(ids))
    assert not np.array_equal(wave, units.to_sound(ids, seed=1))
    assert units.to_sound([]).shape == (0,)


@given(seed=st.integers(0, 1000), seconds=st.floats(0.001, 0.6))
@settings(deadline=None, max_examples=15)
def test_a_saved_tokenizer_gives_the_same_ids(
    units: UnitTokenizer, tmp_path_factory: pytest.TempPathFactory, seed: int, seconds: float
) -> None:
    path = tmp_path_factory.mktemp("units") / "units.safetensors"
    units.save(path)
    loaded = UnitTokenizer.load(path)
    assert loaded.fingerprint == units.fingerprint and loaded.config == units.config
    wave = tone(seconds, seed)
    np.testing.assert_array_equal(loaded.encode(wave, 8000), units.encode(wave, 8000))


def test_equal_tokenizers_are_equal_files_under_a_megabyte(tmp_path: Path) -> None:
    config = UnitConfig()
    codebook = np.ones((1024, 480), np.float16)
    for name in ("a", "b"):
        UnitTokenizer(config, codebook, np.zeros(80, np.float32), np.ones(80, np.float32)).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size < 1_000_000


def test_training_is_repeatable_and_the_fingerprint_tells_tokenizers_apart(units: UnitTokenizer) -> None:
    def train(config: UnitConfig = SMALL, seed: int = 0) -> str:
        return UnitTokenizer.train((tone(1.0, seed) for seed in range(8)), config, seed).fingerprint

    assert train() == units.fingerprint
    others = {train(seed=1), train(SMALL.model_copy(update={"normalize": "utterance"})), units.fingerprint}
    assert len(others) == 3


def test_normalised_units_do_not_hear_loudness() -> None:
    config = SMALL.model_copy(update={"normalize": "utterance"})
    units = UnitTokenizer.train((tone(1.0, seed) for seed in range(8)), config)
    plain = UnitTokenizer.train((tone(1.0, seed) for seed in range(8)), SMALL)
    wave = tone(1.0, 3)
    assert np.mean(units.encode(wave, 8000) == units.encode(0.01 * wave, 8000)) > 0.95
    assert np.mean(plain.encode(wave, 8000) == plain.encode(0.01 * wave, 8000)) < 0.8
    level = units.decode_mel(units.encode(wave, 8000)).mean()
    assert abs(level - units._mel(wave).mean()) < 1  # played at the level of the training recordings


@pytest.mark.parametrize("normalize", ["none", "utterance"])
def test_silence_has_units(units: UnitTokenizer, normalize: str) -> None:
    config = SMALL.model_copy(update={"normalize": normalize})
    silent = UnitTokenizer(config, units.codebook, units.mean, units.std)
    assert set(silent.encode(np.zeros(800, np.float32), 8000)) <= set(range(16))


def test_another_sample_rate_is_refused_with_the_fix(units: UnitTokenizer) -> None:
    with pytest.raises(DataError, match=r"16000 Hz, expected 8000; use resample\(wave, 16000, 8000\)"):
        units.encode(tone(0.1, 0), 16_000)


def test_no_samples_are_refused(units: UnitTokenizer) -> None:
    with pytest.raises(DataError, match="no samples"):
        units.encode(np.zeros(0, np.float32), 8000)


@pytest.mark.parametrize("n_silent", [0, 1, 20])
def test_too_little_sound_to_train_on_is_refused(n_silent: int) -> None:
    with pytest.raises(DataError, match=r"nothing to train|different windows for 16 units"):
        UnitTokenizer.train([np.zeros(8000, np.float32)] * n_silent, SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 2, "stride": 4}, "stride 4 skips frames"),
        ({"hop": 1e-6}, "less than a sample"),
        ({"n_units": 65_535}, "less than or equal to 65534"),
        ({"strides": 4}, "Extra inputs"),
    ],
)
def test_configs_that_make_no_sense_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UnitConfig.model_validate(changes)


def test_files_that_are_no_tokenizer_are_refused_in_one_line(units: UnitTokenizer, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "units.safetensors"
    units.save(path)
    content = path.read_bytes()
    for broken in (content[:-10], content[:20], b"", b"no safetensors at all"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"units\.safetensors: not a readable unit tokenizer \(.+\)$"):
            UnitTokenizer.load(path)
    save_file({"codebook": units.codebook}, path)
    with pytest.raises(DataError, match="a safetensors file, but not a unit tokenizer's"):
        UnitTokenizer.load(path)
    UnitTokenizer(SMALL, units.codebook[:5], units.mean, units.std).save(path)
    with pytest.raises(DataError, match=r"float16\(5, 120\), expected finite float16\(16, 120\)"):
        UnitTokenizer.load(path)
    with pytest.raises(DataError, match="no such file"):
        UnitTokenizer.load(tmp_path / "none")


def test_progress_is_told_to_the_end() -> None:
    told: list[tuple[int, int, str]] = []
    UnitTokenizer.train((tone(1.0, seed) for seed in range(8)), SMALL, progress=lambda *step: told.append(step))
    assert told[0] == (0, 6, "clustering") and told[-1] == (6, 6, "clustering")


def test_a_reservoir_is_a_uniform_sample() -> None:
    counts = np.zeros(40)
    for seed in range(600):
        reservoir = Reservoir(10, seed)
        for start in range(0, 40, 8):
            reservoir.add(np.arange(start, start + 8, dtype=np.float32)[:, None])
        assert reservoir.rows.shape == (10, 1) and len(np.unique(reservoir.rows)) == 10
        counts[reservoir.rows[:, 0].astype(int)] += 1
    assert counts.min() > 100 and counts.max() < 200  # 150 expected, standard deviation 10.6


def test_clusters_find_separate_blobs() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    rows = np.concatenate([centre + rng.normal(0, 0.1, (50, 2)) for centre in centres]).astype(np.float32)
    found = cluster(rows, 3, seed=0)
    np.testing.assert_allclose(found[nearest(centres, found)], centres, atol=0.1)
    assert nearest(rows[:0], found).shape == (0,)
