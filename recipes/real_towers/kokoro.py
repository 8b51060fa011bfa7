"""Kokoro-82M speaks English sentences in 28 voices: words to phonemes by a dictionary, phonemes to sound by ONNX.

Words that neither dictionary knows are not guessed: their sentence is refused; who makes a corpus takes another one.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zippkit.data.audio import Wave
from zippkit.errors import DataError
from zippkit.system.extras import require

SAMPLE_RATE = 24_000
MOST_PHONEMES = 510
VOWELS = "AIOQWYiuɑɔəɛɜɪʊʌæɐᵊᵻ"
WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*|[.,!?;:—]")
WEAK = {"a": ("ɐ", "ɐn"), "the": ("ðə", "ði"), "to": ("tə", "tʊ")}
"""Words that are said in another way before a consonant, and before a vowel."""
STRESS = "ˈˌ"
SILENCE = 0.01
"""Amplitude under which the ends of a recording are cut."""


class Kokoro:
    """The model in a folder that ``fetch.py`` wrote."""

    def __init__(self, folder: Path, n_threads: int = 1) -> None:
        require("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = n_threads
        self.folder = folder
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self.ids: dict[str, int] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))["vocab"]
        self.words = Dictionary(folder)

    @property
    def voices(self) -> list[str]:
        """Names of the English voices: ``af`` and ``am`` are American, ``bf`` and ``bm`` British; f women, m men."""
        return sorted(file.stem for file in (self.folder / "voices").glob("[ab][fm]_*.bin"))

    def say(self, text: str, voice: str, speed: float = 1.0) -> Wave:
        """Speak a sentence, 24,000 samples a second.

        Args:
            text: words and punctuation.
            voice: one of ``voices``.
            speed: 1 is the voice's own; 1.2 is a fifth faster.

        Raises:
            DataError: a word without known phonemes, or a sentence that is too long.
        """
        ids = [self.ids[each] for each in self.words.phonemes(text) if each in self.ids]
        if not 0 < len(ids) <= MOST_PHONEMES:
            raise DataError(f"{text!r} has {len(ids)} phonemes; expected 1 to {MOST_PHONEMES}")
        style = _styles(self.folder / "voices" / f"{voice}.bin")[len(ids) - 1]
        given = {
            "tokens": np.array([[0, *ids, 0]], dtype=np.int64),
            "style": style[None],
            "speed": np.array([speed], dtype=np.float32),
        }
        samples = np.asarray(self.session.run(None, given)[0], dtype=np.float32).ravel()
        return _without_silence(samples)


@cache
def _styles(file: Path) -> NDArray[np.float32]:
    """(N, 256) a voice's styles, by the number of phonemes."""
    return np.fromfile(file, dtype="<f4").reshape(-1, 256)


def _without_silence(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    loud = np.flatnonzero(np.abs(samples) > SILENCE)
    if not len(loud):
        return samples
    margin = SAMPLE_RATE // 20
    return samples[max(0, loud[0] - margin) : loud[-1] + margin]


class Dictionary:
    """Phonemes of English words, as misaki's dictionaries have them."""

    def __init__(self, folder: Path) -> None:
        self.gold, self.silver = (
            json.loads((folder / f"us_{name}.json").read_text(encoding="utf-8")) for name in ("gold", "silver")
        )

    def phonemes(self, text: str) -> str:
        """A sentence in Kokoro's phonemes.

        Raises:
            DataError: a word that it does not know.
        """
        said = ""
        words = WORD.findall(text)
        for i, word in enumerate(words):
            if not word[0].isalpha():
                said += word
                continue
            following = next((other for other in words[i + 1 : i + 2] if other[0].isalpha()), "")
            said += (" " if said else "") + self._in_context(word, following)
        return said

    def _in_context(self, word: str, following: str) -> str:
        weak = WEAK.get(word.lower())
        if weak is None or not following:
            return self.word(word)
        return weak[self.word(following).lstrip(STRESS)[:1] in VOWELS]

    def word(self, word: str) -> str:
        """Phonemes of a word, or of the word whose plural, possessive or past it is.

        Raises:
            DataError: it does not know it.
        """
        for form in dict.fromkeys((word, word.lower(), word.capitalize())):
            found = self.gold.get(form) or self.silver.get(form)
            if found:
                return str(found["DEFAULT"] if isinstance(found, dict) else found)
        for ending in ("'s", "s", "'"):
            if word.endswith(ending) and len(word) > len(ending) + 1:
                return _with_s(self.word(word.removesuffix(ending)))
        raise DataError(f"{word!r}: no phonemes of that word are known")


def _with_s(phonemes: str) -> str:
    last = phonemes[-1:]
    if last in "szʃʒʧʤ":
        return phonemes + "ᵻz"
    return phonemes + ("s" if last in "ptkfθ" else "z")
