"""Sound files and mel spectrograms: the only file that imports soundfile and librosa."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zippkit.data.records import File
from zippkit.errors import DataError
from zippkit.system.extras import require
from zippkit.system.files import write_bytes

Wave: TypeAlias = NDArray[np.float32]
"""(N,) samples of one channel, full scale at +-1."""

MEL_FLOOR = 1e-5
"""Magnitudes below this count as silence, so that the logarithm stays finite."""

RATES = (100, 768_000)
"""Lowest and highest sample rate of a recording, in Hz; a header with another is damaged, and resampling from it would
blow a sound up, or take for ever."""
_BLOCK = 1 << 20
"""Samples that are read at once: what a header promises is not allocated before it is there."""


def read_audio(path: str | Path | File) -> tuple[Wave, int]:
    """Samples and sample rate (Hz) of a sound file, on disk or in a table; channels are averaged.

    Raises:
        DataError: the file is missing, broken, cut short, has no samples or a rate outside `RATES`, does not fit into
            memory, or holds NaN or infinity.
    """
    require("soundfile")
    import soundfile

    opened, size, head = _opened(Path(path) if isinstance(path, str) else path)
    if size == 0:
        raise DataError(f"{path}: empty file")
    promised: int | None = None
    try:
        with soundfile.SoundFile(opened) as file:
            rate, promised = int(file.samplerate), int(file.frames)
            if not RATES[0] <= rate <= RATES[1]:
                raise DataError(f"{path}: sample rate {rate} Hz; expected {RATES[0]} to {RATES[1]}")
            wave = _samples(file)
    except MemoryError:
        raise DataError(f"{path}: {promised} samples do not fit into memory; cut it into shorter files") from None
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        told = "" if promised is None else f"; its header promises {promised} samples"
        raise DataError(f"{path}: not a readable sound file ({reason}){told}") from None
    if len(wave) == 0 and promised == 0:
        raise DataError(f"{path}: no samples")
    if len(wave) < promised or _riff_is_cut(head, size):
        raise DataError(f"{path}: cut short after {len(wave)} samples; its header promises {promised}")
    if not np.isfinite(wave).all():
        raise DataError(f"{path}: sample {int(np.argmin(np.isfinite(wave)))} is not a finite number")
    return wave, rate


def _samples(file: Any) -> Wave:
    """(N,) mean of the channels of what an open sound file holds, whatever its header promises."""
    blocks: list[Wave] = [np.zeros(0, np.float32)]
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1, dtype=np.float32))
    return np.concatenate(blocks)


def _opened(file: File) -> tuple[Path | io.BytesIO, int, bytes]:
    """What libsndfile opens, its size in bytes, and its first eight bytes."""
    if not isinstance(file, Path):
        content = file.read_bytes()
        return io.BytesIO(content), len(content), content[:8]
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    with file.open("rb") as opened:
        return file, file.stat().st_size, opened.read(8)


def _riff_is_cut(head: bytes, size: int) -> bool:
    """Whether a WAV file ends before its header says; libsndfile reads such a file as a shorter one without a word."""
    promised = int.from_bytes(head[4:8], "little")
    # Writers that cannot seek leave the largest size or none; others forget the padding byte.
    return head[:4] == b"RIFF" and promised < 0xFFFF_FF00 and promised + 8 > size + 1


def write_audio(path: str | Path, wave: Wave, rate: int) -> None:
    """Write 16-bit PCM in the format that the suffix names (.wav, .flac); samples beyond +-1 are clipped."""
    require("soundfile")
    import soundfile

    # Into memory first: libsndfile says nothing of a disk that is full.
    written = io.BytesIO()
    form = Path(path).suffix.lstrip(".").upper()
    soundfile.write(written, np.clip(wave, -1.0, 1.0), rate, subtype="PCM_16", format=form)
    write_bytes(path, written.getvalue())


def resample(wave: Wave, rate: int, to: int) -> Wave:
    """``wave`` from ``rate`` to ``to`` Hz, band-limited; unchanged where the two are equal."""
    if rate == to:
        return wave
    require("librosa")
    import librosa

    resampled: Wave = librosa.resample(wave, orig_sr=rate, target_sr=to, res_type="soxr_hq")
    return resampled.astype(np.float32)


def mel_filters(rate: int, n_fft: int, n_mels: int) -> NDArray[np.float32]:
    """(n_mels, n_fft/2 + 1) triangular filters.

    Raises:
        DataError: a filter is narrower than a frequency bin and would always read zero.
    """
    require("librosa")
    import librosa

    with warnings.catch_warnings():
        # Said below as an error, with the fix.
        warnings.filterwarnings("ignore", message="Empty filters detected", category=UserWarning)
        filters: NDArray[np.float32] = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels)
    empty = int((filters.max(axis=1) == 0).sum())
    if empty:
        raise DataError(
            f"{empty} of {n_mels} mel bands are empty at n_fft {n_fft} and {rate} Hz; take fewer, or a larger n_fft"
        )
    return filters


def log_mel(wave: Wave, filters: NDArray[np.float32], hop: int) -> NDArray[np.float32]:
    """(T, n_mels) natural logarithm of mel magnitudes, one frame every ``hop`` samples, T = 1 + N // hop."""
    require("librosa")
    import librosa

    n_fft = 2 * (filters.shape[1] - 1)
    padded = np.pad(wave, (0, max(0, n_fft - len(wave))))
    magnitudes = np.abs(librosa.stft(padded, n_fft=n_fft, hop_length=hop))[:, : 1 + len(wave) // hop]
    logarithm: NDArray[np.float32] = np.log(np.maximum(filters @ magnitudes, MEL_FLOOR)).T.astype(np.float32)
    return logarithm


def mel_to_sound(mel: NDArray[np.float32], rate: int, n_fft: int, hop: int, *, seed: int, n_iter: int = 32) -> Wave:
    """(N,) sound of log-mel frames ``(T, n_mels)``, N = (T - 1) * hop, so that ``log_mel`` of it has T frames again.

    Griffin and Lim (1984), in the fast variant of Perraudin et al. (2013); phases start as ``seed`` draws them.
    """
    require("librosa")
    import librosa

    if len(mel) < 2:
        return np.zeros(0, np.float32)
    magnitudes = librosa.feature.inverse.mel_to_stft(np.exp(mel.T), sr=rate, n_fft=n_fft, power=1.0)
    wave: Wave = librosa.griffinlim(
        magnitudes, n_iter=n_iter, hop_length=hop, n_fft=n_fft, length=(len(mel) - 1) * hop, random_state=seed
    )
    return wave.astype(np.float32)
