"""`check_tokenizer`: whether a tokenizer of sound or of frames keeps its protocol."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippkit.data.discrete_tokenizer import DiscreteTokenizer
from zippkit.data.frame_tokenizer import FrameTokenizer
from zippkit.data.speech_tokenizer import SpeechTokenizer
from zippkit.errors import DataError
from zippkit.evaluation.plugin_checks.checks import SkippedCheck, run_checks
from zippkit.spec.kinds import Strict
from zippkit.spec.registry import TOKENIZERS, UnknownKindError, implementation

FRAME = (3,)
"""Shape of the frames that a tokenizer of frames is tried with."""
_SECONDS = 1.0


def check_tokenizer(tokenizer: type[DiscreteTokenizer], config: Strict | None = None) -> list[str]:
    """Check that a tokenizer keeps its protocol (`SpeechTokenizer`, or `FrameTokenizer`).

    It is trained on a few made examples, encodes, is saved and loaded, and is given what it must refuse.

    Args:
        tokenizer: the class.
        config: small settings, of few units; the defaults if left out.

    Returns:
        What could not be checked, and why.

    Raises:
        AssertionError: says in one sentence each what is wrong, everything at once.
    """
    return run_checks(tokenizer.__name__, _CHECKS, _Case(tokenizer, config))


class _Case:
    """A tokenizer class, one trained of it, and examples for it."""

    def __init__(self, cls: type[DiscreteTokenizer], config: Strict | None) -> None:
        if not issubclass(cls, SpeechTokenizer | FrameTokenizer):
            raise TypeError(f"{cls.__name__} is neither a SpeechTokenizer nor a FrameTokenizer")
        self.cls, self.config = cls, config or cls.Config()

    @cached_property
    def rate(self) -> int:
        """Samples a second, of sound."""
        return self.cls.rate_for(self.config) if issubclass(self.cls, SpeechTokenizer) else 0

    def example(self, seed: int) -> NDArray[np.float32]:
        """Sound of a second, or frames."""
        numbers = np.random.default_rng(seed)
        if not self.rate:
            return np.cumsum(numbers.normal(size=(200, *FRAME)), axis=0).astype(np.float32)
        time = np.arange(int(self.rate * _SECONDS)) / self.rate
        starts, pitches = time[:: len(time) // 6], numbers.uniform(80, 2000, 6)
        tones = sum(np.sin(2 * np.pi * f * time) * (time > at) for f, at in zip(pitches, starts, strict=False))
        wave: NDArray[np.float32] = (0.1 * tones + 0.02 * numbers.normal(size=len(time))).astype(np.float32)
        return wave

    def trained(self, first: int = 0) -> Any:
        """A tokenizer trained on examples that are read once."""
        return self.cls.train((self.example(first + i) for i in range(8)), self.config, 0, None)

    @cached_property
    def tokenizer(self) -> Any:
        """One that is trained."""
        return self.trained()

    def encode(self, tokenizer: Any, example: NDArray[np.float32], rate: int | None = None) -> Any:
        """Ids of an example."""
        return tokenizer.encode(example, rate or self.rate) if self.rate else tokenizer.encode(example)

    def back(self, ids: Any) -> Any:
        """Sound or frames of ids."""
        try:
            return self.tokenizer.to_sound(ids) if self.rate else self.tokenizer.decode(ids)
        except DataError as error:
            raise SkippedCheck(str(error)) from None


def _kind(case: _Case) -> Iterator[str]:
    if not isinstance(getattr(case.cls, "kind", None), str):
        yield "it has no kind, the name of its entry point"
        return
    try:
        found = implementation(TOKENIZERS, case.cls.kind)
    except UnknownKindError:
        told = f"nobody registers {case.cls.kind!r} under {TOKENIZERS}, so no dataset could keep it"
        raise SkippedCheck(told) from None
    if found is not case.cls:
        yield f"what is registered as {case.cls.kind!r} is {found!r}"


def _ids(case: _Case) -> Iterator[str]:
    example = case.example(50)
    given = example.copy()
    ids = case.encode(case.tokenizer, example)
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        yield f"encode gives {_told(ids)}, expected an array (U,) of integers"
        return
    if not len(ids):
        yield "encode gives no ids for an example that is long enough for some"
        return
    begin, end, size = case.tokenizer.begin, case.tokenizer.end, case.tokenizer.vocab_size
    if ids.min() < 0 or ids.max() >= begin:
        yield f"encode gives ids from {ids.min()} to {ids.max()}, expected 0 to {begin - 1}: below `begin`"
    if not (begin <= end < size and begin < size):
        yield f"begin {begin}, end {end} and vocab_size {size}; expected both frame ids inside the vocabulary"
    if not np.array_equal(case.encode(case.tokenizer, example), ids):
        yield "encode gives other ids the second time"
    if not np.array_equal(example, given):
        yield "encode changes the example that it is given"


def _refusals(case: _Case) -> Iterator[str]:
    example = case.example(51)
    wrong: dict[str, Callable[[], Any]] = {"an empty example": lambda: case.encode(case.tokenizer, example[:0])}
    if case.rate:
        wrong["sound at another rate"] = lambda: case.encode(case.tokenizer, example, case.rate + 1)
    else:
        wrong["frames of another shape"] = lambda: case.encode(case.tokenizer, example[:, :-1])
        wrong["a reading that is NaN"] = lambda: case.encode(case.tokenizer, example * np.float32(np.nan))
    for what, call in wrong.items():
        if told := _refused(call):
            yield f"encode takes {what}: {told}"


def _rate(case: _Case) -> Iterator[str]:
    if not case.rate:
        raise SkippedCheck("it is no tokenizer of sound")
    if case.tokenizer.sample_rate != case.rate:
        yield f"sample_rate is {case.tokenizer.sample_rate}, and rate_for says {case.rate}"
    expected = case.tokenizer.units_per_second * _SECONDS
    seen = len(case.encode(case.tokenizer, case.example(52)))
    if abs(seen - expected) > 0.1 * expected + 3:
        yield f"a second of sound becomes {seen} units, and units_per_second says {expected:g}"


def _fingerprint(case: _Case) -> Iterator[str]:
    mark = case.tokenizer.fingerprint
    if not isinstance(mark, str) or not re.fullmatch(r"[0-9a-f]{64}", mark):
        yield f"fingerprint is {mark!r}, expected a SHA-256, 64 hexadecimal digits"
    if case.trained().fingerprint != mark:
        yield "trained twice with the same examples and seed, it has two fingerprints"
    other, example = case.trained(first=100), case.example(53)
    same = np.array_equal(case.encode(other, example), case.encode(case.tokenizer, example))
    if not same and other.fingerprint == mark:
        yield "two tokenizers with one fingerprint give an example different ids: all that decides them must be in it"


def _saving_and_loading(case: _Case) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"it{case.cls.suffix}"
        case.tokenizer.save(path)
        if [file.name for file in Path(folder).iterdir()] != [path.name]:
            yield f"save writes {[file.name for file in Path(folder).iterdir()]}, expected the one file that it is told"
            return
        loaded, example = case.cls.load(path), case.example(54)
        if loaded.fingerprint != case.tokenizer.fingerprint:
            yield "loaded, it has another fingerprint"
        if not np.array_equal(case.encode(loaded, example), case.encode(case.tokenizer, example)):
            yield "loaded, it gives other ids"
        content = path.read_bytes()
        for what, damaged in {
            "cut short": content[: len(content) // 2],
            "of something else": b"something else",
        }.items():
            path.write_bytes(damaged)
            if told := _refused(lambda: case.cls.load(path)):
                yield f"load takes a file {what}: {told}"
        path.unlink()
        if told := _refused(lambda: case.cls.load(path)):
            yield f"load takes a file that is missing: {told}"


def _way_back(case: _Case) -> Iterator[str]:
    ids = case.encode(case.tokenizer, case.example(55))
    back = case.back(ids)
    shape = () if case.rate else FRAME
    sound = isinstance(back, np.ndarray) and back.dtype == np.float32 and back.shape[1:] == shape
    if not sound or not np.isfinite(back).all():
        yield f"ids become {_told(back)}, expected finite float32 of shape {('N', *shape)}"
        return
    framed = case.back([case.tokenizer.begin, *ids.tolist(), case.tokenizer.end])
    if not np.array_equal(framed, back):
        yield "begin and end ids change what ids become; they are to be left out"
    call = case.tokenizer.to_sound if case.rate else case.tokenizer.decode
    if told := _refused(lambda: call([case.tokenizer.vocab_size])):
        yield f"an id outside the vocabulary is taken: {told}"


def _told(value: Any) -> str:
    return f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _refused(call: Callable[[], Any]) -> str | None:
    """Why a call was not refused by a DataError."""
    try:
        call()
    except DataError:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}; expected a DataError"
    return "expected a DataError"


_CHECKS = (_kind, _ids, _refusals, _rate, _fingerprint, _saving_and_loading, _way_back)
