"""What `prepare` is asked to make of each modality, and the encoder that follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from zippkit.data.corpus_splits import transcript_tokenizer
from zippkit.data.encoders import Encoder, FramesEncoder, IdsEncoder, PictureEncoder, SoundEncoder, TextEncoder
from zippkit.data.frame_tokenizer import FrameTokenizer
from zippkit.data.manifest import is_dataset, tokenized_column
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.readers.array_check import kind_of
from zippkit.data.records import Record, Source
from zippkit.data.speech_tokenizer import SpeechTokenizer
from zippkit.data.text import ByteTokenizer, FileTokenizer
from zippkit.data.trained_or_new import Settings, TokenizerSource
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError, ZippkitError, did_you_mean
from zippkit.spec.kinds import Strict
from zippkit.spec.validation import validate

NONE = "none"
"""The kind that leaves frames and sound as they are."""

Choice: TypeAlias = Settings | PixelTokenizer | ByteTokenizer | FileTokenizer
"""A kind, settings with their ``kind``, a tokenizer, or of text what ``text`` may be."""


class PixelConfig(Strict):
    """Settings of grey levels."""

    side: int = 8
    levels: int = 17


@dataclass(frozen=True)
class Choices:
    """What each modality is to become; where nothing is said, what its content suggests."""

    text: str | Path = "bytes"
    units: Settings = None
    tokenizer: str = "mel_units"
    waveform: int | None = None
    resample: bool = False
    vocoder: bool = False
    tokenizers: Mapping[str, Choice] = field(default_factory=dict)
    """By modality; these go before the others."""

    def encoders(self, records: Sequence[Record]) -> dict[str, Encoder[Any]]:
        """An encoder for each modality of a corpus.

        Raises:
            DataError: everything that does not fit, at once.
        """
        found: dict[str, Encoder[Any]] = {}
        sources = _usual(records)
        wrong = list(self._unused(sources))
        for name, source in sources.items():
            try:
                found[name] = self._encoder(name, source, records)
            except ZippkitError as error:
                wrong.append(str(error))
        if wrong:
            raise DataError("\n".join(wrong))
        return found

    def _unused(self, sources: Mapping[str, Source]) -> Iterator[str]:
        for name in self.tokenizers:
            if name not in sources:
                yield f"tokenizer for {name!r}: the corpus has no such modality{did_you_mean(name, sources)}"
        if not any(kind_of(source) == "sound" for source in sources.values()):
            about = {
                "waveform": self.waveform,
                "units": self.units,
                "resample": self.resample or None,
                "vocoder": self.vocoder or None,
                "tokenizer": None if self.tokenizer == UnitTokenizer.kind else self.tokenizer,
            }
            named = [f"--{name}" for name, value in about.items() if value is not None]
            if named:
                yield f"the corpus holds no sound, only {', '.join(sources)}; remove {', '.join(named)}"

    def _encoder(self, name: str, source: Source, records: Sequence[Record]) -> Encoder[Any]:
        kind, settings = _kind_and_settings(self.tokenizers.get(name))
        content = kind_of(source)
        if content == "text":
            return TextEncoder(self._text(name, kind, settings, records))
        if content == "sound":
            return self._sound(name, kind, settings)
        if content == "a picture":
            return PictureEncoder(_pixels(name, kind, settings))
        if content == "features":
            assert isinstance(source, np.ndarray)
            given = kind not in (None, NONE) or settings is not None
            frames = (
                TokenizerSource.of(settings, kind or "frame_units", FrameTokenizer, name, f"{name}, frames of floats")  # type: ignore[type-abstract]
                if given
                else None
            )
            return FramesEncoder(frames, source.shape[1:])
        if kind not in (None, NONE) or settings is not None:
            raise DataError(f"{name} holds ids, which need no tokenizer; leave it out, or say {name}={NONE}")
        return IdsEncoder()

    def _text(
        self, name: str, kind: str | None, settings: Any, records: Sequence[Record]
    ) -> ByteTokenizer | FileTokenizer:
        if isinstance(settings, ByteTokenizer | FileTokenizer):
            return settings
        if settings is not None:
            raise DataError(f"{name} is text; expected bytes, words or a tokenizer.json, got {settings!r}")
        return transcript_tokenizer(kind or self.text, records, name)

    def _sound(self, name: str, kind: str | None, settings: Any) -> SoundEncoder:
        if kind == NONE or (kind is None and settings is None and self.waveform is not None):
            if self.waveform is None:
                raise DataError(f"{name} is sound without a tokenizer; say at which rate with --waveform HZ")
            return SoundEncoder(None, self.waveform, self.resample)
        own = kind is not None or settings is not None
        source = TokenizerSource.of(
            _file_of(settings if own else self.units, name),
            kind or self.tokenizer,
            SpeechTokenizer,  # type: ignore[type-abstract]
            name if own else "units",
            f"{name}, sound",
        )
        if self.vocoder and not source.cls.takes_vocoder:
            raise DataError(source.cls.no_vocoder())
        rate = source.trained.sample_rate if source.trained else source.cls.rate_for(source.config)
        return SoundEncoder(source, rate, self.resample)


def _kind_and_settings(choice: Choice) -> tuple[str | None, Any]:
    """The kind that is named, and the rest; both None if nothing is said."""
    if isinstance(choice, str | Path):
        return str(choice), None
    if isinstance(choice, Mapping):
        rest = {key: value for key, value in choice.items() if key != "kind"}
        return choice.get("kind"), rest or None
    return None, choice


def _pixels(name: str, kind: str | None, settings: Any) -> PixelTokenizer:
    if isinstance(settings, PixelTokenizer):
        return settings
    if kind not in (None, "pixels"):
        raise DataError(f"{name} holds pictures, and tokenizer {kind!r} reads none; expected pixels")
    config, complaints = validate(PixelConfig, dict(settings or {}), (name,))
    if config is None:
        raise DataError("; ".join(f"{'.'.join(map(str, place))}: {message}" for place, message in complaints))
    return PixelTokenizer(config.side, config.levels)


def _usual(records: Sequence[Record]) -> dict[str, Source]:
    """Modality to one of its sources; a record that does not go with the others says so by itself."""
    found: dict[str, Source] = {}
    for record in records:
        for name, source in record.sources():
            if name not in found and not record.trouble:
                found[name] = source
    for record in records:
        for name, source in record.sources():
            found.setdefault(name, source)
    return found


def _file_of(settings: Settings, modality: str) -> Settings:
    """The tokenizer's file, where the settings are the folder of a dataset that has one."""
    if isinstance(settings, str | Path) and is_dataset(settings):
        file = tokenized_column(settings, modality).file
        return Path(settings) / file if file is not None else settings
    return settings
