"""Sound files that are read as written, and those that must be refused; log-mels and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zippkit.data.audio import log_mel, mel_filters, mel_to_sound, read_audio, resample, write_audio
from zippkit.errors import DataError

pytestmark = pytest.mark.slow

RATE = 16_000
NOISE = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)


def sine(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    write_audio(tmp_path / f"a.{suffix}", NOISE, RATE)
    wave, rate = read_audio(tmp_path / f"a.{suffix}")
    assert rate == RATE and wave.dtype == np.float32
    np.testing.assert_allclose(wave, NOISE, atol=1 / 32768)


def test_channels_are_averaged(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", np.stack([NOISE, -NOISE / 2], axis=1), RATE)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0], NOISE / 4, atol=1 / 32768)


def test_samples_beyond_full_scale_are_clipped(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", np.array([3.0, -3.0], np.float32), RATE)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0], [1, -1], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("cut.flac", 0.5, "not a readable sound file"),
        ("head.flac", 0.002, "not a readable sound file"),
        ("cut.wav", 0.5, "cut short after 7989 samples"),
        ("nothing.wav", 0.0, "empty file"),
    ],
)
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, name: str, keep: float, message: str) -> None:
    path = tmp_path / name
    write_audio(path, NOISE, RATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=f"{name}: {message}"):
        read_audio(path)


@pytest.mark.parametrize("promised", [16_001, 2**30, 2**36 - 1])
def test_samples_that_a_header_only_promises_are_not_allocated(tmp_path: Path, promised: int) -> None:
    path = tmp_path / "a.flac"
    write_audio(path, NOISE, RATE)
    content = bytearray(path.read_bytes())
    # The last 36 of these 64 bits count the samples.
    head = int.from_bytes(content[18:26], "big") >> 36 << 36
    content[18:26] = (head | promised).to_bytes(8, "big")
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.flac: .*; its header promises {promised}"):
        read_audio(path)


@pytest.mark.parametrize("rate", [1, 99, 1_000_000])
def test_a_rate_that_no_recording_has_is_refused(tmp_path: Path, rate: int) -> None:
    write_audio(tmp_path / "a.wav", NOISE, rate)
    with pytest.raises(DataError, match=rf"a\.wav: sample rate {rate} Hz; expected 100 to 768000"):
        read_audio(tmp_path / "a.wav")


def test_channels_of_a_long_file_are_averaged_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zippkit.data.audio._BLOCK", 999)
    write_audio(tmp_path / "a.wav", np.stack([NOISE, NOISE / 2], axis=1), RATE)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0], 0.75 * NOISE, atol=1 / 32768)


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", NOISE[:0], RATE)
    with pytest.raises(DataError, match=r"a\.wav: no samples"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    import soundfile

    wave = NOISE.copy()
    wave[7] = bad
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav: sample 7 is not a finite number"):
        read_audio(tmp_path / "a.wav")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.wav: no such file"):
        read_audio(tmp_path / "a.wav")


def test_resampling_keeps_the_sound_and_its_duration() -> None:
    halved = resample(sine(440, 16_000), 16_000, 8000)
    assert halved.dtype == np.float32 and len(halved) == 8000
    np.testing.assert_allclose(halved[200:-200], sine(440, 8000)[200:-200], atol=1e-3)
    assert resample(NOISE, RATE, RATE) is NOISE


@pytest.mark.parametrize("n_samples", [1, 100, 511, 1600, 1601])
def test_one_frame_per_hop(n_samples: int) -> None:
    mel = log_mel(NOISE[:n_samples], mel_filters(RATE, 512, 80), 160)
    assert mel.shape == (1 + n_samples // 160, 80) and np.isfinite(mel).all()


def test_a_tone_is_loudest_in_its_own_band() -> None:
    filters = mel_filters(RATE, 512, 80)
    mel = log_mel(sine(1000, RATE), filters, 160)
    assert mel[50].argmax() == filters[:, 32].argmax()  # bin 32 of 512 at 16 kHz is 1000 Hz


def test_bands_narrower_than_a_bin_are_refused() -> None:
    with pytest.raises(DataError, match="of 80 mel bands are empty at n_fft 128"):
        mel_filters(RATE, 128, 80)


def test_sound_from_mel_has_the_same_mel() -> None:
    filters = mel_filters(RATE, 512, 80)
    mel = log_mel(np.concatenate([NOISE[:8000], sine(700, RATE, 0.5)]), filters, 160)
    wave = mel_to_sound(mel, RATE, 512, 160, seed=0)
    again = log_mel(wave, filters, 160)
    assert again.shape == mel.shape
    assert np.abs(again - mel).mean() < 0.3 * np.abs(mel[::-1] - mel).mean()
    np.testing.assert_array_equal(wave, mel_to_sound(mel, RATE, 512, 160, seed=0))


@pytest.mark.parametrize("n_frames", [0, 1])
def test_too_few_frames_are_no_sound(n_frames: int) -> None:
    assert mel_to_sound(np.zeros((n_frames, 80), np.float32), RATE, 512, 160, seed=0).shape == (0,)
