"""PocketSphinx with a grammar: a second opinion where the words are known, such as digit strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from zippkit.data.audio import Wave
from zippkit.errors import ZippkitError
from zippkit.evaluation.recognisers.base import MissingScorerError, Scorer, pinned
from zippkit.spec.kinds import Strict
from zippkit.system.extras import require

SHA256 = {
    "en-us/means": "832019e32cac12eb318964f96f469034acb12d0348eeddc3831831a100cb4dd4",
    "en-us/variances": "b00d696f85e96834fc10f8e5f06428d8c4db6bffdbe5845b6f69bf6efbc48fa5",
    "en-us/transition_matrices": "c1f7f28ea43177be734be1f88bd7f1b9a853d0e660f8599c67c6eaeca8bb539a",
    "en-us/mdef": "2360f9a86889c1cfee8bd618a0269387911e5fb2920a594f506b18b8c79683b0",
    "en-us/sendump": "8c9564c0d5bef69ca9d9bf1014abe162f071644cf02cf1fa8a483c3dc165a7a8",
    "en-us/feat.params": "c982c5f75e2a30c34d2c9ef1f6b129a5a00e67e3e927565076b58664cc2404c9",
    "en-us/noisedict": "7295b07df2c204c4f87c6782b6be1a3859d7006d4e3864181c955d6dab105a33",
    "cmudict-en-us.dict": "20b5c293e1f311fb375fe067e500ec5636f4fc7af5594967263696def9b23bfe",
}
"""Files of its model to contents, as in the releases that the scores were measured with."""
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class PocketSphinxConfig(Strict):
    """Words that can be heard."""

    words: list[str] = Field(DIGITS, min_length=1, description="Any string of these; the ten digits if left out.")
    grammar: str | None = Field(None, description="A whole JSGF grammar instead of `words`.")


class PocketSphinx(Scorer):
    """Words of a grammar, in English (kind ``pocketsphinx``); its model is inside its wheel."""

    Config: ClassVar[type[Strict]] = PocketSphinxConfig

    def __init__(self, config: PocketSphinxConfig) -> None:
        require("pocketsphinx", error=MissingScorerError)
        for file, sha256 in SHA256.items():
            pinned("pocketsphinx", f"model/en-us/{file}", sha256)
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
        """Rate of the sound to transcribe, in Hz."""
        return 16_000

    def transcribe(self, waves: Sequence[Wave]) -> list[str]:
        """Return the words of each whole utterance; empty where none are heard."""
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
