"""PocketSphinx with a grammar: a second opinion where the words are known, such as digit strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from zippkit.config import Strict
from zippkit.data.audio import Wave
from zippkit.errors import ZippkitError
from zippkit.scoring.base import Scorer, need

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class PocketSphinxConfig(Strict):
    """What can be heard."""

    words: list[str] = Field(DIGITS, min_length=1, description="Any string of these; the ten digits if left out.")
    grammar: str | None = Field(None, description="A whole JSGF grammar instead of `words`.")


class PocketSphinx(Scorer):
    """Words of a grammar, in English (kind ``pocketsphinx``); its acoustic model is inside its wheel."""

    Config: ClassVar[type[Strict]] = PocketSphinxConfig

    def __init__(self, config: PocketSphinxConfig) -> None:
        need("pocketsphinx")
        from pocketsphinx import Decoder

        grammar = config.grammar or _any_of(config.words)
        self._decoder = Decoder(samprate=self.sample_rate, lm=None, loglevel="FATAL")
        unknown = [word for word in config.words if self._decoder.lookup_word(word) is None]
        if unknown and not config.grammar:
            raise ZippkitError(f"pocketsphinx: not in its dictionary: {', '.join(unknown)}; expected English words")
        try:
            self._decoder.add_jsgf_string("words", grammar)
            self._decoder.activate_search("words")
        except (RuntimeError, ValueError, KeyError) as error:
            raise ZippkitError(f"pocketsphinx: not a usable JSGF grammar ({error}): {grammar!r}") from None

    @property
    def sample_rate(self) -> int:
        return 16_000

    def transcribe(self, waves: Sequence[Wave]) -> list[str]:
        return [self._one(wave) if len(wave) else "" for wave in waves]

    def _one(self, wave: Wave) -> str:
        pcm = (np.clip(wave, -1, 1) * 32_767).astype("<i2").tobytes()
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, no_search=False, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found else ""


def _any_of(words: Sequence[str]) -> str:
    return f"#JSGF V1.0; grammar words; public <words> = ( {' | '.join(words)} )+ ;"
